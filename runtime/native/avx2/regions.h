// QuantizeRegions, eight values at a time. Included by kernels_avx2.cc and kernels_avx512.cc.
#pragma once

#include "integers.h"
#include "rows.h"

namespace {

inline __m256 rint_of(__m256 v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

void quantize_regions(const qvit::QuantizeRegionsArgs& q) {
  const __m256 offset = splat(q.offset), zero = _mm256_setzero_ps();
  for (ptrdiff_t i = 0; i < q.count; i += 8) {
    const int count = at_most_8(q.count - i);
    const __m256 above = _mm256_sub_ps(load_first(q.x + i, count), offset);
    __m256 low = rint_of(_mm256_max_ps(_mm256_div_ps(above, splat(q.low_scale)), zero));
    const __m256 is_low = _mm256_cmp_ps(low, splat(q.low_top), _CMP_LE_OQ);
    __m256 high = rint_of(_mm256_min_ps(_mm256_div_ps(above, splat(q.high_scale)), splat(q.high_top)));
    low = _mm256_and_ps(low, is_low);
    high = _mm256_andnot_ps(is_low, high);
    store_first_bytes(q.low + i, to_bytes(_mm256_cvtps_epi32(low)), count);
    store_first_bytes(q.high + i, to_bytes(_mm256_cvtps_epi32(high)), count);
  }
}

}  // namespace
