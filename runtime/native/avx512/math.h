// exp2 and GELU on sixteen floats: avx2/math.h at twice the width, same constants. Included by kernels_avx512.cc only.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

inline __m512 wide_splat(float x) { return _mm512_set1_ps(x); }

inline __m512 exp2_of(__m512 t) {  // t <= 0; below -126 the result is 2^-126
  t = _mm512_max_ps(t, wide_splat(-126.0f));
  const __m512 n = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(t, n);
  __m512 p = wide_splat(0.00132764722f);
  p = _mm512_fmadd_ps(p, f, wide_splat(0.00967554162f));
  p = _mm512_fmadd_ps(p, f, wide_splat(0.0555071328f));
  p = _mm512_fmadd_ps(p, f, wide_splat(0.240221197f));
  p = _mm512_fmadd_ps(p, f, wide_splat(0.693146967f));
  p = _mm512_fmadd_ps(p, f, wide_splat(1.00000007f));
  const __m512i exponent = _mm512_slli_epi32(_mm512_cvtps_epi32(n), 23);
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), exponent));
}

inline __m512 gelu_of(__m512 x) {
  const __m512 held = _mm512_min_ps(_mm512_max_ps(x, wide_splat(-5.5f)), wide_splat(5.5f));
  const __m512 s = _mm512_mul_ps(held, held);
  __m512 top = wide_splat(2.22194696e-08f), bottom = wide_splat(1.19496635e-06f);
  top = _mm512_fmadd_ps(top, s, wide_splat(6.52379015e-06f));
  bottom = _mm512_fmadd_ps(bottom, s, wide_splat(7.84588753e-05f));
  top = _mm512_fmadd_ps(top, s, wide_splat(0.000182463808f));
  bottom = _mm512_fmadd_ps(bottom, s, wide_splat(0.00196031209f));
  top = _mm512_fmadd_ps(top, s, wide_splat(0.00475932719f));
  bottom = _mm512_fmadd_ps(bottom, s, wide_splat(0.0293784123f));
  top = _mm512_fmadd_ps(top, s, wide_splat(0.0351078424f));
  bottom = _mm512_fmadd_ps(bottom, s, wide_splat(0.254666053f));
  top = _mm512_fmadd_ps(top, s, wide_splat(0.398942008f));
  bottom = _mm512_fmadd_ps(bottom, s, wide_splat(1.0f));
  const __m512 phi = _mm512_fmadd_ps(held, _mm512_div_ps(top, bottom), wide_splat(0.5f));
  return _mm512_mul_ps(x, phi);
}

// Sixteen quantized values to bytes.
inline __m128i to_codes(__m512 v, __m512 levels) {
  const __m512 clipped = _mm512_max_ps(_mm512_min_ps(v, levels), _mm512_setzero_ps());
  return _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(clipped));
}

inline __mmask16 first_columns(ptrdiff_t count) {
  return count >= 16 ? __mmask16{0xffff} : static_cast<__mmask16>((1u << count) - 1);
}

// Fixed orders of addition, as everywhere.
inline float sum_lanes(__m512 v) { return _mm512_reduce_add_ps(v); }
inline float max_lanes(__m512 v) { return _mm512_reduce_max_ps(v); }

}  // namespace
