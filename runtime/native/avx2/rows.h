// Quantize and GELU on their own, and loads and stores of the first few lanes.
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
    store_bytes(q.codes + i, to_codes(steps[0], steps[1], most, most),
                static_cast<int>(q.count - i < 16 ? q.count - i : 16));
  }
}

void gelu(const qvit::GeluArgs& g) {
  for (ptrdiff_t i = 0; i < g.count; i += 8) {
    const int n = at_most_8(g.count - i);
    store_first(g.out + i, gelu_of(load_first(g.x + i, n)), n);
  }
}

}  // namespace
