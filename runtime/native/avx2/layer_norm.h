// LayerNorm, with the quantization behind it. Included by kernels_avx2.cc only.
#pragma once

#include "../kernels.h"
#include "../layout.h"
#include "math.h"
#include "rows.h"

namespace {

// Four running sums hide the latency of the additions; they are added up in one fixed order.
struct RowSum {
  __m256 lane[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};

  float total() const {
    return sum_lanes(_mm256_add_ps(_mm256_add_ps(lane[0], lane[1]), _mm256_add_ps(lane[2], lane[3])));
  }
};

// The mean of a row, then the mean square around it.
inline float row_mean(const float* x, int width) {
  RowSum sum;
  int i = 0;
  for (; i + 32 <= width; i += 32) {
    for (int k = 0; k < 4; ++k) sum.lane[k] = _mm256_add_ps(sum.lane[k], _mm256_loadu_ps(x + i + 8 * k));
  }
  for (; i < width; i += 8) sum.lane[0] = _mm256_add_ps(sum.lane[0], load_first(x + i, width - i));
  return sum.total() / static_cast<float>(width);
}

inline float row_variance(const float* x, int width, __m256 mean) {
  RowSum sum;
  int i = 0;
  for (; i + 32 <= width; i += 32) {
    for (int k = 0; k < 4; ++k) {
      const __m256 d = _mm256_sub_ps(_mm256_loadu_ps(x + i + 8 * k), mean);
      sum.lane[k] = _mm256_fmadd_ps(d, d, sum.lane[k]);
    }
  }
  for (; i < width; i += 8) {
    const __m256 inside = _mm256_castsi256_ps(first_lanes(width - i));
    const __m256 d = _mm256_and_ps(_mm256_sub_ps(load_first(x + i, width - i), mean), inside);
    sum.lane[0] = _mm256_fmadd_ps(d, d, sum.lane[0]);
  }
  return sum.total() / static_cast<float>(width);
}

inline __m256 normal_of(const qvit::LayerNormArgs& n, const float* x, int at, __m256 mean, __m256 inverse) {
  const __m256 normal = _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(x + at), mean), inverse);
  return _mm256_fmadd_ps(normal, _mm256_loadu_ps(n.weight + at), _mm256_loadu_ps(n.bias + at));
}

inline __m256 normal_of_tail(const qvit::LayerNormArgs& n, const float* x, int at, __m256 mean, __m256 inverse) {
  const int count = at_most_8(n.width - at);
  const __m256 normal = _mm256_mul_ps(_mm256_sub_ps(load_first(x + at, count), mean), inverse);
  return _mm256_fmadd_ps(normal, load_first(n.weight + at, count), load_first(n.bias + at, count));
}

inline void layer_norm_row(const qvit::LayerNormArgs& n, ptrdiff_t start, __m256 mean, __m256 inverse) {
  const float* x = n.x + start;
  int c = 0;
  if (n.codes == nullptr) {
    for (; c + 8 <= n.width; c += 8) _mm256_storeu_ps(n.out + start + c, normal_of(n, x, c, mean, inverse));
    if (c < n.width) store_first(n.out + start + c, normal_of_tail(n, x, c, mean, inverse), n.width - c);
    return;
  }
  for (; c + 16 <= n.width; c += 16) {
    const __m256 lo = normal_of(n, x, c, mean, inverse), hi = normal_of(n, x, c + 8, mean, inverse);
    const __m128i codes = to_codes(lo, hi, _mm256_loadu_ps(n.levels + c), _mm256_loadu_ps(n.levels + c + 8));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(n.codes + start + c), codes);
  }
  if (c < n.width) {
    const __m256 lo = normal_of_tail(n, x, c, mean, inverse), hi = normal_of_tail(n, x, c + 8, mean, inverse);
    const __m256 levels_lo = load_first(n.levels + c, at_most_8(n.width - c));
    const __m256 levels_hi = load_first(n.levels + c + 8, at_most_8(n.width - c - 8));
    store_bytes(n.codes + start + c, to_codes(lo, hi, levels_lo, levels_hi), n.width - c);
  }
}

// Six rows at a time, each pass over all of them: the reductions at the ends of rows then overlap.
void layer_norm(const qvit::LayerNormArgs& n) {
  for (int first = 0; first < n.rows; first += qvit::kTileRows) {
    const int rows = n.rows - first < qvit::kTileRows ? n.rows - first : qvit::kTileRows;
    const ptrdiff_t start = static_cast<ptrdiff_t>(first) * n.width;
    float mean[qvit::kTileRows], inverse[qvit::kTileRows];
    for (int r = 0; r < rows; ++r) mean[r] = row_mean(n.x + start + static_cast<ptrdiff_t>(r) * n.width, n.width);
    for (int r = 0; r < rows; ++r) {
      const float variance = row_variance(n.x + start + static_cast<ptrdiff_t>(r) * n.width, n.width, splat(mean[r]));
      inverse[r] = 1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(variance + n.eps)));
    }
    for (int r = 0; r < rows; ++r) {
      layer_norm_row(n, start + static_cast<ptrdiff_t>(r) * n.width, splat(mean[r]), splat(inverse[r]));
    }
  }
}

}  // namespace
