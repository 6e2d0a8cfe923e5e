// Row-wise float kernels: quantize, LayerNorm, softmax, GELU. Each row is summed in eight lanes in a fixed order.
// Included by kernels_avx2.cc only.
#pragma once

#include "../kernels.h"
#include "math.h"

namespace {

inline __m256 load_first(const float* x, int count) {
  return count >= 8 ? _mm256_loadu_ps(x) : _mm256_maskload_ps(x, first_lanes(count));
}

inline void store_first(float* x, __m256 v, int count) {
  if (count >= 8) {
    _mm256_storeu_ps(x, v);
  } else {
    _mm256_maskstore_ps(x, first_lanes(count), v);
  }
}

inline int at_most_8(ptrdiff_t n) { return n < 0 ? 0 : (n < 8 ? static_cast<int>(n) : 8); }

// (x - offset) / scale, clipped and rounded, minus qmin: division and order of operations as the interpreter has them.
void quantize(const qvit::QuantizeArgs& q) {
  for (ptrdiff_t i = 0; i < q.count; i += 16) {
    __m256 steps[2];
    for (int half = 0; half < 2; ++half) {
      const ptrdiff_t at = i + 8 * half;
      const int n = at_most_8(q.count - at);
      const __m256 x = load_first(q.x + at, n);
      __m256 scale, offset, low, high;
      if (q.per_element) {
        scale = _mm256_blendv_ps(splat(1.0f), load_first(q.scale + at, n), _mm256_castsi256_ps(first_lanes(n)));
        offset = load_first(q.offset + at, n);
        low = load_first(q.qmin + at, n);
        high = load_first(q.qmax + at, n);
      } else {
        scale = splat(*q.scale);
        offset = splat(*q.offset);
        low = splat(*q.qmin);
        high = splat(*q.qmax);
      }
      const __m256 divided = _mm256_div_ps(_mm256_sub_ps(x, offset), scale);
      const __m256 clipped = _mm256_min_ps(_mm256_max_ps(divided, low), high);
      const __m256 code = _mm256_round_ps(clipped, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      steps[half] = _mm256_sub_ps(code, low);
    }
    const __m256 most = splat(255.0f);
    store_bytes(q.codes + i, to_codes(steps[0], steps[1], most, most), static_cast<int>(q.count - i < 16 ? q.count - i : 16));
  }
}

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

void layer_norm(const qvit::LayerNormArgs& n) {
  for (int row = 0; row < n.rows; ++row) {
    const ptrdiff_t start = static_cast<ptrdiff_t>(row) * n.width;
    const float* x = n.x + start;
    const __m256 mean = splat(row_mean(x, n.width));
    const __m256 variance = splat(row_variance(x, n.width, mean) + n.eps);
    const __m256 inverse = _mm256_div_ps(splat(1.0f), _mm256_sqrt_ps(variance));
    int c = 0;
    if (n.codes != nullptr) {
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
    } else {
      for (; c + 8 <= n.width; c += 8) _mm256_storeu_ps(n.out + start + c, normal_of(n, x, c, mean, inverse));
      if (c < n.width) store_first(n.out + start + c, normal_of_tail(n, x, c, mean, inverse), n.width - c);
    }
  }
}

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

// exp(x - max) as exp2(x * log2(e) - max * log2(e)): one fused multiply-subtract, and the rounding of the common
// term cancels between numerator and sum. What fills up the row becomes 2^-126.
void softmax(const qvit::SoftmaxArgs& s) {
  const __m256 log2e = splat(1.44269504f);
  const int padded = (s.width + 15) / 16 * 16;
  for (int row = 0; row < s.rows; ++row) {
    float* x = s.x + row * s.x_stride;
    const __m256 shift = splat(prepare_scores(s, x, static_cast<ptrdiff_t>(row) * s.width, padded) * 1.44269504f);
    __m256 sum_a = _mm256_setzero_ps(), sum_b = _mm256_setzero_ps();
    for (int i = 0; i < padded; i += 16) {
      const __m256 a = exp2_of(_mm256_fmsub_ps(_mm256_loadu_ps(x + i), log2e, shift));
      const __m256 b = exp2_of(_mm256_fmsub_ps(_mm256_loadu_ps(x + i + 8), log2e, shift));
      _mm256_storeu_ps(x + i, a);
      _mm256_storeu_ps(x + i + 8, b);
      sum_a = _mm256_add_ps(sum_a, a);
      sum_b = _mm256_add_ps(sum_b, b);
    }
    const float inverse = 1.0f / sum_lanes(_mm256_add_ps(sum_a, sum_b));
    if (s.codes == nullptr) {
      float* out = s.out + row * s.out_stride;
      for (int i = 0; i < padded; i += 8) _mm256_storeu_ps(out + i, _mm256_mul_ps(_mm256_loadu_ps(x + i), splat(inverse)));
      continue;
    }
    uint8_t* codes = s.codes + row * s.out_stride;
    const __m256 factor = splat(inverse * s.factor), add = splat(s.shift), levels = splat(s.levels);
    for (int i = 0; i < padded; i += 16) {
      const __m256 a = _mm256_fmadd_ps(_mm256_loadu_ps(x + i), factor, add);
      const __m256 b = _mm256_fmadd_ps(_mm256_loadu_ps(x + i + 8), factor, add);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i), to_codes(a, b, levels, levels));
    }
  }
}

void gelu(const qvit::GeluArgs& g) {
  for (ptrdiff_t i = 0; i < g.count; i += 8) {
    const int n = at_most_8(g.count - i);
    store_first(g.out + i, gelu_of(load_first(g.x + i, n)), n);
  }
}

}  // namespace
