// Integer epilogues of the GEMM: sums as they are, or requantized while they are in the first-level cache.
// Included by kernels_avx2.cc only.
#pragma once

#include "../kernels.h"
#include "../layout.h"
#include "rescale.h"

namespace {

// rows x 16 sums (row stride 16 in `acc`, corrections still to add), eight columns of all rows at a time.
template <qvit::Epilogue kEpilogue, bool kNarrow>
inline void finish_integers(const qvit::GemmArgs& g, int row, int rows, int column, int valid, const int32_t* acc) {
  constexpr bool kAdd = kEpilogue == qvit::Epilogue::kAddRequantize;
  const ptrdiff_t stride = g.out_stride;
  for (int c = 0; c < valid; c += 8) {
    const int count = valid - c;
    ptrdiff_t at = row * stride + column + c;
    const __m256i correction = load_integers(g.correction + column + c);
    if constexpr (kEpilogue == qvit::Epilogue::kSums) {
      for (int r = 0; r < rows; ++r, at += stride) {
        store_integers(g.integer.out.wide + at, _mm256_add_epi32(load_integers(acc + r * qvit::kPanel + c), correction),
                       count);
      }
    } else {
      const qvit::MutableCodeRow out = g.integer.out;
      const int32_t* residual = g.integer.residual;
      const Rescale8 rescale(g.integer.scale, column + c);
      const Rescale8 rescale_residual(kAdd ? g.integer.residual_scale : g.integer.scale, column + c);
      const Clip8<kNarrow> clip(g.integer.clip, column + c);
      for (int r = 0; r < rows; ++r, at += stride) {
        __m256i v = rescale(_mm256_add_epi32(load_integers(acc + r * qvit::kPanel + c), correction));
        if constexpr (kAdd) v = _mm256_add_epi32(v, rescale_residual(load_integers(residual + at, count)));
        store_codes<kNarrow>(out, at, clip(v), count);
      }
    }
  }
}

}  // namespace
