// Integer epilogues of the GEMM: sums as they are, or requantized while they are in the first-level cache.
// Included by kernels_avx512.cc only.
#pragma once

#include "../kernels.h"
#include "../layout.h"
#include "rescale.h"

namespace {

// rows x 16 sums of one panel, corrections included, `sums_stride` apart: eight columns of all rows at a time.
template <qvit::Epilogue kEpilogue, bool kNarrow>
inline void finish_integers(const qvit::GemmArgs& g, int row, int rows, ptrdiff_t column, const int32_t* sums,
                            ptrdiff_t sums_stride) {
  constexpr bool kAdd = kEpilogue == qvit::Epilogue::kAddRequantize;
  const ptrdiff_t stride = g.out_stride;
  for (ptrdiff_t c = 0; c < qvit::kPanel; c += 8) {
    const ptrdiff_t count = g.columns - column - c, first = row * stride + column + c;
    if (count <= 0) break;
    const __mmask8 valid = static_cast<__mmask8>(count >= 8 ? 0xff : (1u << count) - 1);
    for (int r = 0; r < rows; ++r) {
      const ptrdiff_t at = first + r * stride;
      const __m256i sum = _mm256_load_si256(reinterpret_cast<const __m256i*>(sums + r * sums_stride + c));
      if constexpr (kEpilogue == qvit::Epilogue::kSums) {
        _mm256_mask_storeu_epi32(g.integer.out.wide + at, valid, sum);
        continue;
      }
      const __m256i residual = kAdd ? _mm256_maskz_loadu_epi32(valid, g.integer.residual + at) : sum;
      const __m512i codes =
          requantize8<kAdd, kNarrow>(_mm512_cvtepi32_epi64(sum), _mm512_cvtepi32_epi64(residual), g.integer.scale,
                                     g.integer.residual_scale, g.integer.clip, column + c);
      if constexpr (kNarrow) {
        _mm512_mask_cvtepi64_storeu_epi8(g.integer.out.narrow + at, valid, codes);
      } else {
        _mm512_mask_cvtepi64_storeu_epi32(g.integer.out.wide + at, valid, codes);
      }
    }
  }
}

}  // namespace
