// Shiftmax, eight columns at a time. Included by kernels_avx2.cc and kernels_avx512.cc.
#pragma once

#include "integers.h"

namespace {

// E(t; unit, n) for t <= 0. The division by the unit is a float product with a reciprocal that is a little too small:
// its integer part is the quotient or one less, and the rest tells which.
struct ShiftExp {
  __m256i lowest, unit, twice, not_below, fraction;
  __m256 reciprocal;

  ShiftExp(int32_t u, int n)
      : lowest(_mm256_set1_epi32(-n * u)),
        unit(_mm256_set1_epi32(u)),
        twice(_mm256_set1_epi32(static_cast<int32_t>(2u * static_cast<uint32_t>(u)))),
        not_below(_mm256_set1_epi32(1 - u)),
        fraction(_mm256_set1_epi32(n)),
        reciprocal(splat(0.999999f / static_cast<float>(u))) {}

  __m256i operator()(__m256i t) const {
    t = _mm256_sub_epi32(_mm256_add_epi32(t, _mm256_srai_epi32(t, 1)), _mm256_srai_epi32(t, 4));
    t = _mm256_max_epi32(t, lowest);
    const __m256i size = _mm256_sub_epi32(_mm256_setzero_si256(), t);
    __m256i q = _mm256_cvttps_epi32(_mm256_mul_ps(_mm256_cvtepi32_ps(size), reciprocal));
    __m256i r = _mm256_add_epi32(t, _mm256_mullo_epi32(q, unit));
    const __m256i more = _mm256_cmpgt_epi32(not_below, r);  // -1 where r <= -unit
    q = _mm256_sub_epi32(q, more);
    r = _mm256_add_epi32(r, _mm256_and_si256(more, unit));
    return _mm256_srli_epi32(_mm256_sllv_epi32(_mm256_add_epi32(r, twice), _mm256_sub_epi32(fraction, q)), 1);
  }
};

// Scores with their constants into the scratch row, zero behind the last. Returns the largest.
inline int32_t prepare_integer_scores(const qvit::ShiftmaxArgs& s) {
  __m256i largest = _mm256_set1_epi32(INT32_MIN);
  for (int i = 0; i < s.width; i += 8) {
    const int count = s.width - i;
    __m256i t = load_codes(s.x, i, count);
    if (s.bias != nullptr) t = _mm256_add_epi32(t, load_integers(s.bias + i, count));
    if (s.mask != nullptr) t = _mm256_add_epi32(t, load_integers(s.mask + i, count));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(s.scratch + i), t);
    if (count < 8) t = _mm256_blendv_epi8(largest, t, first_lanes(count));
    largest = _mm256_max_epi32(largest, t);
  }
  return max_lanes32(largest);
}

void shiftmax(const qvit::ShiftmaxArgs& s) {
  const __m256i largest = _mm256_set1_epi32(prepare_integer_scores(s));
  const ShiftExp exponential(s.unit, s.fraction);
  __m256i sums = _mm256_setzero_si256();
  for (int i = 0; i < s.width; i += 8) {
    __m256i e = exponential(_mm256_sub_epi32(load_integers(s.scratch + i), largest));
    if (s.width - i < 8) e = _mm256_and_si256(e, first_lanes(s.width - i));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(s.scratch + i), e);
    sums = _mm256_add_epi32(sums, e);
  }
  const __m256i factor = _mm256_set1_epi32(static_cast<int32_t>(INT32_MAX / sum_lanes32(sums)));
  const __m128i shift = _mm_cvtsi32_si128(30 - s.bits);
  const __m256i one = _mm256_set1_epi32(1), top = _mm256_set1_epi32((1 << s.bits) - 1);
  for (int i = 0; i < s.width; i += 8) {
    const __m256i halves = _mm256_srl_epi32(_mm256_mullo_epi32(load_integers(s.scratch + i), factor), shift);
    const __m256i p = _mm256_srli_epi32(_mm256_add_epi32(halves, one), 1);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(s.out + i), to_bytes(_mm256_min_epi32(p, top)));
  }
}

}  // namespace
