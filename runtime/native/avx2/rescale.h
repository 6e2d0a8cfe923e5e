// R(x; m, e) and the clipping behind it, eight columns at a time, and the Requantize kernel. Included by
// kernels_avx2.cc only.
//
// AVX2 multiplies signed 32-bit numbers into 64-bit lanes but shifts those only logically: 2^63 is added before the
// shift and what has become of it taken off after, in 32 bits, where the result has arrived by then.
#pragma once

#include "../kernels_integer.h"
#include "integers.h"

namespace {

// The multipliers, roundings and shifts of eight columns, held in registers over many rows.
struct Rescale8 {
  __m256i multiplier[2], half[2], shift[2], back;

  Rescale8(const qvit::Rescaling& r, ptrdiff_t c) {
    const __m256i top = _mm256_set1_epi64x(INT64_MIN);
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      multiplier[h] = load_integers(r.multiplier + c + 4 * h);
      half[h] = _mm256_xor_si256(load_integers(r.half + c + 4 * h), top);
      shift[h] = load_integers(r.shift + c + 4 * h);
    }
    back = low_halves(_mm256_srlv_epi64(top, shift[0]), _mm256_srlv_epi64(top, shift[1]));
  }

  __m256i operator()(__m256i x) const {
    const __m256i first = _mm256_mul_epi32(_mm256_cvtepi32_epi64(_mm256_castsi256_si128(x)), multiplier[0]);
    const __m256i second = _mm256_mul_epi32(_mm256_cvtepi32_epi64(_mm256_extracti128_si256(x, 1)), multiplier[1]);
    return _mm256_sub_epi32(low_halves(_mm256_srlv_epi64(_mm256_add_epi64(first, half[0]), shift[0]),
                                       _mm256_srlv_epi64(_mm256_add_epi64(second, half[1]), shift[1])),
                            back);
  }
};

template <bool kAdd, bool kNarrow>
void requantize_row(const qvit::RequantizeArgs& r) {
  for (ptrdiff_t c = 0; c < r.count; c += 8) {
    const int count = static_cast<int>(r.count - c < 8 ? r.count - c : 8);
    __m256i codes = Rescale8(r.left_scale, c)(load_codes(r.left, c, count));
    if constexpr (kAdd) codes = _mm256_add_epi32(codes, Rescale8(r.right_scale, c)(load_codes(r.right, c, count)));
    store_codes<kNarrow>(r.out, c, Clip8<kNarrow>(r.clip, c)(codes), count);
  }
}

void requantize(const qvit::RequantizeArgs& r) {
  const bool add = r.right.narrow != nullptr || r.right.wide != nullptr;
  if (!r.small) {
    qvit::scalar::requantize(r);
  } else if (r.out.narrow != nullptr) {
    add ? requantize_row<true, true>(r) : requantize_row<false, true>(r);
  } else {
    add ? requantize_row<true, false>(r) : requantize_row<false, false>(r);
  }
}

}  // namespace
