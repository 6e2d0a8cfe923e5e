// LayerNorm, with the quantization behind it, on sixteen lanes. Included by kernels_avx512.cc only.
#pragma once

#include "../kernels.h"
#include "math.h"

namespace {

inline float row_sum(const float* x, int width) {
  __m512 a = _mm512_setzero_ps(), b = _mm512_setzero_ps();
  int i = 0;
  for (; i + 32 <= width; i += 32) {
    a = _mm512_add_ps(a, _mm512_loadu_ps(x + i));
    b = _mm512_add_ps(b, _mm512_loadu_ps(x + i + 16));
  }
  for (; i < width; i += 16) a = _mm512_add_ps(a, _mm512_maskz_loadu_ps(first_columns(width - i), x + i));
  return sum_lanes(_mm512_add_ps(a, b));
}

inline float row_squares(const float* x, int width, __m512 mean) {
  __m512 a = _mm512_setzero_ps(), b = _mm512_setzero_ps();
  int i = 0;
  for (; i + 32 <= width; i += 32) {
    const __m512 c = _mm512_sub_ps(_mm512_loadu_ps(x + i), mean), d = _mm512_sub_ps(_mm512_loadu_ps(x + i + 16), mean);
    a = _mm512_fmadd_ps(c, c, a);
    b = _mm512_fmadd_ps(d, d, b);
  }
  for (; i < width; i += 16) {
    const __mmask16 inside = first_columns(width - i);
    const __m512 c = _mm512_maskz_sub_ps(inside, _mm512_maskz_loadu_ps(inside, x + i), mean);
    a = _mm512_fmadd_ps(c, c, a);
  }
  return sum_lanes(_mm512_add_ps(a, b));
}

void layer_norm(const qvit::LayerNormArgs& n) {
  const float width = static_cast<float>(n.width);
  for (int row = 0; row < n.rows; ++row) {
    const ptrdiff_t start = static_cast<ptrdiff_t>(row) * n.width;
    const float* x = n.x + start;
    const __m512 mean = wide_splat(row_sum(x, n.width) / width);
    const __m512 variance = wide_splat(row_squares(x, n.width, mean) / width + n.eps);
    const __m512 inverse = _mm512_div_ps(wide_splat(1.0f), _mm512_sqrt_ps(variance));
    for (int c = 0; c < n.width; c += 16) {
      const __mmask16 inside = first_columns(n.width - c);
      const __m512 normal = _mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(inside, x + c), mean), inverse);
      const __m512 v = _mm512_fmadd_ps(normal, _mm512_maskz_loadu_ps(inside, n.weight + c),
                                       _mm512_maskz_loadu_ps(inside, n.bias + c));
      if (n.codes != nullptr) {
        const __m512 levels = _mm512_maskz_loadu_ps(inside, n.levels + c);
        _mm_mask_storeu_epi8(n.codes + start + c, inside, to_codes(v, levels));
      } else {
        _mm512_mask_storeu_ps(n.out + start + c, inside, v);
      }
    }
  }
}

}  // namespace
