// Integer epilogues of the GEMM: sums as they are, or requantized while they are in the first-level cache.
// Included by kernels_avx512.cc only.
#pragma once

#include "../kernels.h"
#include "rescale.h"

namespace {

// rows x 16 sums of one panel, corrections included, `sums_stride` apart.
template <qvit::Epilogue kEpilogue, bool kNarrow>
inline void finish_integers(const qvit::GemmArgs& g, int row, int rows, ptrdiff_t column, const int32_t* sums,
                            ptrdiff_t sums_stride) {
  constexpr bool kAdd = kEpilogue == qvit::Epilogue::kAddRequantize;
  const ptrdiff_t stride = g.out_stride;
  const __mmask16 valid = first_columns(g.columns - column);
  const qvit::MutableCodeRow out = g.integer.out;
  ptrdiff_t at = row * stride + column;
  if constexpr (kEpilogue == qvit::Epilogue::kSums) {
    for (int r = 0; r < rows; ++r, at += stride) {
      _mm512_mask_storeu_epi32(out.wide + at, valid, _mm512_load_si512(sums + r * sums_stride));
    }
  } else {
    const int32_t* residual = g.integer.residual;
    const Rescale16 rescale(g.integer.scale, column);
    const Rescale16 rescale_residual(kAdd ? g.integer.residual_scale : g.integer.scale, column);
    const Clip16<kNarrow> clip(g.integer.clip, column);
    for (int r = 0; r < rows; ++r, at += stride) {
      __m512i v = rescale(_mm512_load_si512(sums + r * sums_stride));
      if constexpr (kAdd) {
        v = _mm512_add_epi32(v, rescale_residual(_mm512_maskz_loadu_epi32(valid, residual + at)));
      }
      store_codes<kNarrow>(out, at, clip(v), valid);
    }
  }
}

}  // namespace
