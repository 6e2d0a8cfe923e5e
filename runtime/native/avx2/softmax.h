// Softmax, with the quantization behind it. Included by kernels_avx2.cc only.
#pragma once

#include "../kernels.h"
#include "../layout.h"
#include "math.h"

namespace {

// Add the constants and find the largest score; the row is filled up with scores of nothing, so that all later loops
// run over whole vectors.
inline float prepare_scores(const qvit::SoftmaxArgs& s, float* x, ptrdiff_t constant, int padded) {
  const __m256 lowest = splat(-3.0e38f);
  for (int i = s.width & ~7; i < padded; i += 8) {
    const __m256 inside = _mm256_castsi256_ps(first_lanes(s.width - i));
    _mm256_storeu_ps(x + i, _mm256_blendv_ps(lowest, _mm256_loadu_ps(x + i), inside));
  }
  const float* const constants[2] = {s.bias, s.mask};
  for (const float* add : constants) {
    if (add == nullptr) continue;
    int i = 0;
    for (; i + 8 <= s.width; i += 8) {
      _mm256_storeu_ps(x + i, _mm256_add_ps(_mm256_loadu_ps(x + i), _mm256_loadu_ps(add + constant + i)));
    }
    for (; i < s.width; ++i) x[i] += add[constant + i];
  }
  __m256 a = lowest, b = lowest;
  for (int i = 0; i < padded; i += 16) {
    a = _mm256_max_ps(a, _mm256_loadu_ps(x + i));
    b = _mm256_max_ps(b, _mm256_loadu_ps(x + i + 8));
  }
  return max_lanes(_mm256_max_ps(a, b));
}

// x becomes exp(x - max) as exp2((x - max) * log2(e)). One fused x * log2(e) - max * log2(e) would save an instruction, but
// the rounding of its common term, which cancels between numerator and sum, leaves the exponents of a float where scores
// are beyond 1e9. What fills up the row becomes 2^-126. Returns the sum.
inline float exponentials(float* x, int padded, float largest) {
  const __m256 log2e = splat(1.44269504f), top = splat(largest);
  __m256 sum_a = _mm256_setzero_ps(), sum_b = _mm256_setzero_ps();
  for (int i = 0; i < padded; i += 16) {
    const __m256 a = exp2_of(_mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(x + i), top), log2e));
    const __m256 b = exp2_of(_mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(x + i + 8), top), log2e));
    _mm256_storeu_ps(x + i, a);
    _mm256_storeu_ps(x + i + 8, b);
    sum_a = _mm256_add_ps(sum_a, a);
    sum_b = _mm256_add_ps(sum_b, b);
  }
  return sum_lanes(_mm256_add_ps(sum_a, sum_b));
}

// Six rows at a time, each pass over all of them: the reductions at the ends of rows then overlap.
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
      if (s.codes == nullptr) {
        for (int i = 0; i < padded; i += 8) {
          _mm256_storeu_ps(s.out + at + i, _mm256_mul_ps(_mm256_loadu_ps(from + i), splat(numbers[r])));
        }
        continue;
      }
      uint8_t* codes = s.codes + at;
      const __m256 factor = splat(numbers[r] * s.factor), add = splat(s.shift), levels = splat(s.levels);
      for (int i = 0; i < padded; i += 16) {
        const __m256 a = _mm256_fmadd_ps(_mm256_loadu_ps(from + i), factor, add);
        const __m256 b = _mm256_fmadd_ps(_mm256_loadu_ps(from + i + 8), factor, add);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i), to_codes(a, b, levels, levels));
      }
    }
  }
}

}  // namespace
