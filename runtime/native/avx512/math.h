// exp2 on sixteen floats, as in avx2/math.h, and GELU by look-up. Included by kernels_avx512.cc only.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "../gelu_table.h"

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

// The coefficients of gelu_table.h, in registers.
struct Gelu {
  __m512 low[4], high[4];

  explicit Gelu(const float* table) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      low[k] = _mm512_loadu_ps(table + k * qvit::kGeluSegments);
      high[k] = _mm512_loadu_ps(table + k * qvit::kGeluSegments + 16);
    }
  }

  __m512 operator()(__m512 x) const {
    const __m512 magic = wide_splat(12582912.0f);  // 3 * 2^22: adding it leaves rint(t) in the low bits
    const __m512 size = _mm512_abs_ps(x);
    const __m512 t = _mm512_min_ps(_mm512_mul_ps(size, wide_splat(qvit::kGeluSteps)), wide_splat(31.0f));
    const __m512 shifted = _mm512_add_ps(t, magic);
    const __m512i segment = _mm512_castps_si512(shifted);  // the look-up reads five bits of it
    const __m512 r = _mm512_sub_ps(t, _mm512_sub_ps(shifted, magic));
    __m512 h = _mm512_permutex2var_ps(low[3], segment, high[3]);
    h = _mm512_fmadd_ps(h, r, _mm512_permutex2var_ps(low[2], segment, high[2]));
    h = _mm512_fmadd_ps(h, r, _mm512_permutex2var_ps(low[1], segment, high[1]));
    h = _mm512_fmadd_ps(h, r, _mm512_permutex2var_ps(low[0], segment, high[0]));
    return _mm512_fmadd_ps(size, h, _mm512_mul_ps(x, wide_splat(0.5f)));
  }
};

struct NoGelu {
  explicit NoGelu(const float*) {}
  __m512 operator()(__m512 x) const { return x; }
};

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
