// LayerNorm, with the quantization behind it, on sixteen lanes. Included by kernels_avx512.cc only.
#pragma once

#include "../kernels.h"
#include "../layout.h"
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

// Six rows at a time, each pass over all of them: the reductions at the ends of rows then overlap.
void layer_norm(const qvit::LayerNormArgs& n) {
  const float width = static_cast<float>(n.width);
  for (int first = 0; first < n.rows; first += qvit::kTileRows) {
    const int rows = n.rows - first < qvit::kTileRows ? n.rows - first : qvit::kTileRows;
    const ptrdiff_t start = static_cast<ptrdiff_t>(first) * n.width;
    __m512 mean[qvit::kTileRows], inverse[qvit::kTileRows];
    for (int r = 0; r < rows; ++r) {
      mean[r] = wide_splat(row_sum(n.x + start + static_cast<ptrdiff_t>(r) * n.width, n.width) / width);
    }
    for (int r = 0; r < rows; ++r) {
      const float squares = row_squares(n.x + start + static_cast<ptrdiff_t>(r) * n.width, n.width, mean[r]);
      inverse[r] = _mm512_div_ps(wide_splat(1.0f), _mm512_sqrt_ps(wide_splat(squares / width + n.eps)));
    }
    for (int c = 0; c < n.width; c += 16) {
      const __mmask16 inside = first_columns(n.width - c);
      const __m512 weight = _mm512_maskz_loadu_ps(inside, n.weight + c),
                   bias = _mm512_maskz_loadu_ps(inside, n.bias + c);
      const __m512 levels = n.codes != nullptr ? _mm512_maskz_loadu_ps(inside, n.levels + c) : bias;
      for (int r = 0; r < rows; ++r) {
        const ptrdiff_t at = start + static_cast<ptrdiff_t>(r) * n.width + c;
        const __m512 centred = _mm512_sub_ps(_mm512_maskz_loadu_ps(inside, n.x + at), mean[r]);
        const __m512 v = _mm512_fmadd_ps(_mm512_mul_ps(centred, inverse[r]), weight, bias);
        if (n.codes != nullptr) {
          _mm_mask_storeu_epi8(n.codes + at, inside, to_codes(v, levels));
        } else {
          _mm512_mask_storeu_ps(n.out + at, inside, v);
        }
      }
    }
  }
}

}  // namespace
