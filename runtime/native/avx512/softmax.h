// Softmax, with the quantization behind it, on sixteen lanes: see avx2/softmax.h. Included by kernels_avx512.cc only.
#pragma once

#include "../kernels.h"
#include "../layout.h"
#include "math.h"

namespace {

// Add the constants and find the largest score; the row is filled up with scores of nothing.
inline float prepare_scores(const qvit::SoftmaxArgs& s, float* x, ptrdiff_t constant, int padded) {
  const __m512 lowest = wide_splat(-3.0e38f);
  __m512 largest = lowest;
  for (int i = 0; i < padded; i += 16) {
    const __mmask16 inside = first_columns(s.width - i);
    __m512 v = _mm512_mask_loadu_ps(lowest, inside, x + i);
    if (s.bias != nullptr) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(inside, s.bias + constant + i));
    if (s.mask != nullptr) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(inside, s.mask + constant + i));
    if (s.bias != nullptr || s.mask != nullptr || i + 16 > s.width) _mm512_storeu_ps(x + i, v);
    largest = _mm512_max_ps(largest, v);
  }
  return max_lanes(largest);
}

// x becomes exp(x - max), not fused for the reason given there; what fills up the row becomes 2^-126. Returns the sum.
inline float exponentials(float* x, int padded, float largest) {
  const __m512 log2e = wide_splat(1.44269504f), top = wide_splat(largest);
  __m512 sum = _mm512_setzero_ps();
  for (int i = 0; i < padded; i += 16) {
    const __m512 e = exp2_of(_mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(x + i), top), log2e));
    _mm512_storeu_ps(x + i, e);
    sum = _mm512_add_ps(sum, e);
  }
  return sum_lanes(sum);
}

void softmax(const qvit::SoftmaxArgs& s) {
  const int padded = (s.width + 15) / 16 * 16;
  for (int first = 0; first < s.rows; first += qvit::kTileRows) {
    const int rows = s.rows - first < qvit::kTileRows ? s.rows - first : qvit::kTileRows;
    float numbers[qvit::kTileRows];
    float* x = s.x + first * s.x_stride;
    for (int r = 0; r < rows; ++r) {
      numbers[r] = prepare_scores(s, x + r * s.x_stride, static_cast<ptrdiff_t>(first + r) * s.width, padded);
    }
    for (int r = 0; r < rows; ++r) numbers[r] = 1.0f / exponentials(x + r * s.x_stride, padded, numbers[r]);
    for (int r = 0; r < rows; ++r) {
      const float* from = x + r * s.x_stride;
      const ptrdiff_t at = (first + r) * s.out_stride;
      const __m512 factor = wide_splat(s.codes != nullptr ? numbers[r] * s.factor : numbers[r]);
      const __m512 add = wide_splat(s.shift), levels = wide_splat(s.levels);
      for (int i = 0; i < padded; i += 16) {
        const __m512 e = _mm512_loadu_ps(from + i);
        if (s.codes != nullptr) {
          const __m128i codes = to_codes(_mm512_fmadd_ps(e, factor, add), levels);
          _mm_storeu_si128(reinterpret_cast<__m128i*>(s.codes + at + i), codes);
        } else {
          _mm512_storeu_ps(s.out + at + i, _mm512_mul_ps(e, factor));
        }
      }
    }
  }
}

}  // namespace
