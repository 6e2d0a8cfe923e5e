// IntegerLayerNorm, eight columns at a time; big numbers go the scalar way. Included by kernels_avx2.cc and
// kernels_avx512.cc.
#pragma once

#include "../integer_math.h"
#include "integers.h"

namespace {

// x of eight columns; those behind the last are zero.
inline __m256i norm_input(const qvit::IntegerLayerNormArgs& n, int c) {
  const int count = n.width - c;
  __m256i x = _mm256_add_epi32(load_codes(n.x, c, count), load_integers(n.base + c));
  if (n.exponent != nullptr) x = _mm256_sllv_epi32(x, load_integers(n.exponent + c));
  return count >= 8 ? x : _mm256_and_si256(x, first_lanes(count));
}

inline int64_t rounded_mean(const qvit::IntegerLayerNormArgs& n) {
  __m256i sums = _mm256_setzero_si256();
  for (int c = 0; c < n.width; c += 8) sums = _mm256_add_epi32(sums, norm_input(n, c));
  return qvit::floor_divide(2 * sum_lanes32(sums) + n.width, 2 * int64_t{n.width});
}

inline int64_t sum_of_squares(const qvit::IntegerLayerNormArgs& n, __m256i mean) {
  __m256i even = _mm256_setzero_si256(), odd = _mm256_setzero_si256();
  for (int c = 0; c < n.width; c += 8) {
    __m256i y = _mm256_sub_epi32(norm_input(n, c), mean);
    if (n.width - c < 8) y = _mm256_and_si256(y, first_lanes(n.width - c));
    const __m256i high = _mm256_srli_epi64(y, 32);
    even = _mm256_add_epi64(even, _mm256_mul_epi32(y, y));
    odd = _mm256_add_epi64(odd, _mm256_mul_epi32(high, high));
  }
  return sum_lanes64(_mm256_add_epi64(even, odd));
}

template <bool kNarrow>
void integer_norm_row(const qvit::IntegerLayerNormArgs& n) {
  const __m256i mean = _mm256_set1_epi32(static_cast<int32_t>(rounded_mean(n)));
  const int64_t root = qvit::integer_sqrt(sum_of_squares(n, mean));
  const __m256i reciprocal = _mm256_set1_epi32(static_cast<int32_t>(qvit::kOne31 / (root > 0 ? root : 1)));
  // As in rescale.h, but all shifts are the same; products are at most 2^61, so 2^62 makes them positive.
  const __m128i shift = _mm_cvtsi32_si128(n.shift - 8);
  const __m256i top = _mm256_set1_epi64x(int64_t{1} << 62);
  const __m256i back = _mm256_set1_epi32(static_cast<int32_t>((int64_t{1} << 62) >> (n.shift - 8)));
  const __m256i half = _mm256_set1_epi32(128);
  for (int c = 0; c < n.width; c += 8) {
    const __m256i y = _mm256_sub_epi32(norm_input(n, c), mean), m = load_integers(n.multiplier + c);
    const __m256i z = _mm256_srai_epi32(_mm256_mullo_epi32(y, reciprocal), 1);
    const __m256i even = _mm256_mul_epi32(z, m);
    const __m256i odd = _mm256_mul_epi32(_mm256_srli_epi64(z, 32), _mm256_srli_epi64(m, 32));
    const __m256i low = _mm256_srl_epi64(_mm256_add_epi64(even, top), shift);
    const __m256i high = _mm256_slli_epi64(_mm256_srl_epi64(_mm256_add_epi64(odd, top), shift), 32);
    const __m256i scaled = _mm256_sub_epi32(_mm256_blend_epi32(low, high, 0xAA), back);
    const __m256i v = _mm256_add_epi32(_mm256_add_epi32(scaled, load_integers(n.bias + c)), half);
    store_codes<kNarrow>(n.out, c, Clip8<kNarrow>(n.clip, c)(_mm256_srai_epi32(v, 8)), n.width - c);
  }
}

void integer_layer_norm(const qvit::IntegerLayerNormArgs& n) {
  if (!n.small) {
    qvit::scalar::layer_norm(n);
  } else if (n.out.narrow != nullptr) {
    integer_norm_row<true>(n);
  } else {
    integer_norm_row<false>(n);
  }
}

}  // namespace
