// Integer epilogues of the GEMM: sums as they are, or requantized while they are in the first-level cache.
// Included by kernels_avx2.cc only.
#pragma once

#include "../kernels.h"
#include "../layout.h"
#include "rescale.h"

namespace {

inline __m256i first_integers(const int32_t* at, int count) {
  return count >= 8 ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at))
                    : _mm256_maskload_epi32(at, first_lanes(count < 0 ? 0 : count));
}

inline void store_integers(int32_t* at, __m256i v, int count) {
  if (count >= 8) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), v);
  } else if (count > 0) {
    _mm256_maskstore_epi32(at, first_lanes(count), v);
  }
}

// rows x 16 sums (row stride 16 in `acc`, correction still to add), eight columns of all rows at a time.
template <qvit::Epilogue kEpilogue, bool kNarrow>
inline void finish_integers(const qvit::GemmArgs& g, int row, int rows, int column, int valid, const int32_t* acc) {
  constexpr bool kAdd = kEpilogue == qvit::Epilogue::kAddRequantize;
  const ptrdiff_t stride = g.out_stride, first = row * stride + column;
  for (int half = 0; half < 2; ++half) {
    const int c = 8 * half, count = valid - c;
    if (count <= 0) break;
    const __m256i correction = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(g.correction + column + c));
    for (int r = 0; r < rows; ++r) {
      const ptrdiff_t at = first + r * stride + c;
      const __m256i* sums = reinterpret_cast<const __m256i*>(acc + r * qvit::kPanel + c);
      const __m256i sum = _mm256_add_epi32(_mm256_load_si256(sums), correction);
      if constexpr (kEpilogue == qvit::Epilogue::kSums) {
        store_integers(g.integer.out.wide + at, sum, count);
        continue;
      }
      const __m256i residual = kAdd ? first_integers(g.integer.residual + at, count) : sum;
      const __m256i codes = requantize8<kAdd, kNarrow>(sum, residual, g.integer.scale, g.integer.residual_scale,
                                                       g.integer.clip, column + c);
      if constexpr (!kNarrow) {
        store_integers(g.integer.out.wide + at, codes, count);
      } else if (count >= 8) {
        store_narrow8(g.integer.out.narrow + at, codes);
      } else {
        alignas(8) uint8_t bytes[8];
        store_narrow8(bytes, codes);
        for (int i = 0; i < count; ++i) g.integer.out.narrow[at + i] = bytes[i];
      }
    }
  }
}

}  // namespace
