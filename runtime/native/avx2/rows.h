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

void layer_norm(const qvit::LayerNormArgs& n) {
  const float inverse_width = 1.0f / static_cast<float>(n.width);
  for (int row = 0; row < n.rows; ++row) {
    const ptrdiff_t start = static_cast<ptrdiff_t>(row) * n.width;
    const float* x = n.x + start;
    __m256 sum = _mm256_setzero_ps();
    for (int i = 0; i < n.width; i += 8) sum = _mm256_add_ps(sum, load_first(x + i, at_most_8(n.width - i)));
    const __m256 mean = splat(sum_lanes(sum) * inverse_width);
    __m256 squares = _mm256_setzero_ps();
    int i = 0;
    for (; i + 8 <= n.width; i += 8) {
      const __m256 d = _mm256_sub_ps(_mm256_loadu_ps(x + i), mean);
      squares = _mm256_fmadd_ps(d, d, squares);
    }
    if (i < n.width) {
      const int left = n.width - i;
      const __m256 d = _mm256_and_ps(_mm256_sub_ps(load_first(x + i, left), mean), _mm256_castsi256_ps(first_lanes(left)));
      squares = _mm256_fmadd_ps(d, d, squares);
    }
    const __m256 variance = splat(sum_lanes(squares) * inverse_width + n.eps);
    const __m256 inverse = _mm256_div_ps(splat(1.0f), _mm256_sqrt_ps(variance));
    for (int c = 0; c < n.width; c += 16) {
      __m256 v[2], levels[2] = {};
      for (int half = 0; half < 2; ++half) {
        const int at = c + 8 * half, count = at_most_8(n.width - at);
        const __m256 normal = _mm256_mul_ps(_mm256_sub_ps(load_first(x + at, count), mean), inverse);
        v[half] = _mm256_fmadd_ps(normal, load_first(n.weight + at, count), load_first(n.bias + at, count));
        if (n.codes != nullptr) {
          levels[half] = load_first(n.levels + at, count);
        } else {
          store_first(n.out + start + at, v[half], count);
        }
      }
      if (n.codes != nullptr) {
        store_bytes(n.codes + start + c, to_codes(v[0], v[1], levels[0], levels[1]), n.width - c);
      }
    }
  }
}

// exp(x - max) as exp2(x * log2(e) - max * log2(e)): one fused multiply-subtract, and the rounding of the common
// term cancels between numerator and sum.
void softmax(const qvit::SoftmaxArgs& s) {
  const __m256 log2e = splat(1.44269504f), lowest = splat(-3.0e38f);
  for (int row = 0; row < s.rows; ++row) {
    float* x = s.x + row * s.x_stride;
    const ptrdiff_t constant = static_cast<ptrdiff_t>(row) * s.width;
    __m256 largest = lowest;
    for (int i = 0; i < s.width; i += 8) {
      const int n = at_most_8(s.width - i);
      __m256 v = load_first(x + i, n);
      if (s.bias != nullptr) v = _mm256_add_ps(v, load_first(s.bias + constant + i, n));
      if (s.mask != nullptr) v = _mm256_add_ps(v, load_first(s.mask + constant + i, n));
      if (s.bias != nullptr || s.mask != nullptr) store_first(x + i, v, n);
      if (n < 8) v = _mm256_blendv_ps(lowest, v, _mm256_castsi256_ps(first_lanes(n)));
      largest = _mm256_max_ps(largest, v);
    }
    const __m256 shift = splat(max_lanes(largest) * 1.44269504f);
    __m256 sum = _mm256_setzero_ps();
    int i = 0;
    for (; i + 8 <= s.width; i += 8) {
      const __m256 e = exp2_of(_mm256_fmsub_ps(_mm256_loadu_ps(x + i), log2e, shift));
      _mm256_storeu_ps(x + i, e);
      sum = _mm256_add_ps(sum, e);
    }
    if (i < s.width) {
      const int n = s.width - i;
      const __m256 e = exp2_of(_mm256_fmsub_ps(load_first(x + i, n), log2e, shift));
      store_first(x + i, e, n);
      sum = _mm256_add_ps(sum, _mm256_and_ps(e, _mm256_castsi256_ps(first_lanes(n))));
    }
    const float inverse = 1.0f / sum_lanes(sum);
    if (s.codes == nullptr) {
      float* out = s.out + row * s.out_stride;
      for (int c = 0; c < s.width; c += 8) {
        const int n = at_most_8(s.width - c);
        store_first(out + c, _mm256_mul_ps(load_first(x + c, n), splat(inverse)), n);
      }
      continue;
    }
    uint8_t* codes = s.codes + row * s.out_stride;
    const __m256 factor = splat(inverse * s.factor), add = splat(s.shift), levels = splat(s.levels);
    for (int c = 0; c < s.width; c += 16) {
      const __m256 lo = load_first(x + c, at_most_8(s.width - c));
      const __m256 hi = load_first(x + c + 8, at_most_8(s.width - c - 8));
      store_bytes(codes + c, to_codes(_mm256_fmadd_ps(lo, factor, add), _mm256_fmadd_ps(hi, factor, add), levels, levels),
                  s.width - c);
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
