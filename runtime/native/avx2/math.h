// exp2 and GELU on eight floats, and the small change of vector code. Included by kernels_avx2.cc only.
//
// Constants come from tools/fit_polynomials.py (our own minimax fits):
//   exp2   t = n + f, n = rint(t), f in [-1/2, 1/2]: degree 5, relative error 7.5e-8, then n is added to the exponent
//   Phi    x Phi(x) with Phi(x) = 1/2 + x P(x^2) / Q(x^2) on |x| <= 5.5, degree 5/5: error of x Phi(x) 2.2e-8 before
//          rounding; beyond the limit x is held, where Phi is 0 or 1 to within 2e-8
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

inline __m256 splat(float x) { return _mm256_set1_ps(x); }

inline __m256 exp2_of(__m256 t) {  // t <= 0, as in a softmax; below -126 the result is 2^-126: nothing, to any sum
  t = _mm256_max_ps(t, splat(-126.0f));
  const __m256 n = _mm256_round_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m256 f = _mm256_sub_ps(t, n);
  __m256 p = splat(0.00132764722f);
  p = _mm256_fmadd_ps(p, f, splat(0.00967554162f));
  p = _mm256_fmadd_ps(p, f, splat(0.0555071328f));
  p = _mm256_fmadd_ps(p, f, splat(0.240221197f));
  p = _mm256_fmadd_ps(p, f, splat(0.693146967f));
  p = _mm256_fmadd_ps(p, f, splat(1.00000007f));
  const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
}

inline __m256 gelu_of(__m256 x) {
  const __m256 held = _mm256_min_ps(_mm256_max_ps(x, splat(-5.5f)), splat(5.5f));
  const __m256 s = _mm256_mul_ps(held, held);
  __m256 top = splat(2.22194696e-08f), bottom = splat(1.19496635e-06f);
  top = _mm256_fmadd_ps(top, s, splat(6.52379015e-06f));
  bottom = _mm256_fmadd_ps(bottom, s, splat(7.84588753e-05f));
  top = _mm256_fmadd_ps(top, s, splat(0.000182463808f));
  bottom = _mm256_fmadd_ps(bottom, s, splat(0.00196031209f));
  top = _mm256_fmadd_ps(top, s, splat(0.00475932719f));
  bottom = _mm256_fmadd_ps(bottom, s, splat(0.0293784123f));
  top = _mm256_fmadd_ps(top, s, splat(0.0351078424f));
  bottom = _mm256_fmadd_ps(bottom, s, splat(0.254666053f));
  top = _mm256_fmadd_ps(top, s, splat(0.398942008f));
  bottom = _mm256_fmadd_ps(bottom, s, splat(1.0f));
  const __m256 phi = _mm256_fmadd_ps(held, _mm256_div_ps(top, bottom), splat(0.5f));
  return _mm256_mul_ps(x, phi);
}

// Lanes 0..count-1 set, for count 0..8.
inline __m256i first_lanes(int count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// Sums in one fixed order, so that a row's result never depends on where the row stands.
inline float sum_lanes(__m256 v) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
}

inline float max_lanes(__m256 v) {
  __m128 half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_shuffle_ps(half, half, 1)));
}

// Sixteen quantized values to bytes: the upper bound here, the lower one by the saturation of the packs.
inline __m128i to_codes(__m256 lo, __m256 hi, __m256 levels_lo, __m256 levels_hi) {
  const __m256i a = _mm256_cvtps_epi32(_mm256_min_ps(lo, levels_lo));
  const __m256i b = _mm256_cvtps_epi32(_mm256_min_ps(hi, levels_hi));
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xD8);
  return _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

inline void store_bytes(uint8_t* at, __m128i bytes, int count) {
  if (count >= 16) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at), bytes);
    return;
  }
  alignas(16) uint8_t all[16];
  _mm_store_si128(reinterpret_cast<__m128i*>(all), bytes);
  for (int i = 0; i < count; ++i) at[i] = all[i];
}

}  // namespace
