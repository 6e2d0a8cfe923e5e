// R(x; m, e) and the clipping behind it on eight 64-bit lanes, and the Requantize kernel. Included by kernels_avx512.cc
// only.
#pragma once

#include "../kernels_integer.h"
#include "math.h"

namespace {

using qvit::Clipping;
using qvit::Rescaling;

// Eight columns from `c` on; the low halves of the lanes of x count.
inline __m512i rescale8(__m512i x, const Rescaling& r, ptrdiff_t c) {
  const __m512i product = _mm512_mul_epi32(x, _mm512_loadu_si512(r.multiplier + c));
  return _mm512_srav_epi64(_mm512_add_epi64(product, _mm512_loadu_si512(r.half + c)), _mm512_loadu_si512(r.shift + c));
}

inline __m512i load_codes8(const qvit::CodeRow& row, ptrdiff_t at) {
  if (row.narrow != nullptr) {
    return _mm512_cvtepu8_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(row.narrow + at)));
  }
  return _mm512_cvtepi32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row.wide + at)));
}

// clip(R(x)) or clip(R(x) + R(y)) of eight columns, as stored: narrow codes less `low`.
template <bool kAdd, bool kNarrow>
inline __m512i requantize8(__m512i x, __m512i y, const Rescaling& left, const Rescaling& right, const Clipping& clip,
                           ptrdiff_t c) {
  __m512i v = rescale8(x, left, c);
  if constexpr (kAdd) v = _mm512_add_epi64(v, rescale8(y, right, c));
  const __m512i low = _mm512_loadu_si512(clip.low + c);
  v = _mm512_max_epi64(_mm512_min_epi64(v, _mm512_loadu_si512(clip.high + c)), low);
  return kNarrow ? _mm512_sub_epi64(v, low) : v;
}

template <bool kAdd, bool kNarrow>
void requantize_row(const qvit::RequantizeArgs& r) {
  ptrdiff_t c = 0;
  for (; c + 8 <= r.count; c += 8) {
    const __m512i y = kAdd ? load_codes8(r.right, c) : _mm512_setzero_si512();
    const __m512i codes = requantize8<kAdd, kNarrow>(load_codes8(r.left, c), y, r.left_scale, r.right_scale, r.clip, c);
    if constexpr (kNarrow) {
      _mm_storel_epi64(reinterpret_cast<__m128i*>(r.out.narrow + c), _mm512_cvtepi64_epi8(codes));
    } else {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(r.out.wide + c), _mm512_cvtepi64_epi32(codes));
    }
  }
  if (c == r.count) return;
  auto rest = [c](auto row) {
    if (row.narrow != nullptr) row.narrow += c;
    if (row.wide != nullptr) row.wide += c;
    return row;
  };
  qvit::scalar::requantize({rest(r.left), rest(r.right), r.left_scale.from(c), r.right_scale.from(c), r.clip.from(c),
                            r.count - c, rest(r.out)});
}

void requantize(const qvit::RequantizeArgs& r) {
  const bool add = r.right.narrow != nullptr || r.right.wide != nullptr;
  if (r.out.narrow != nullptr) {
    add ? requantize_row<true, true>(r) : requantize_row<false, true>(r);
  } else {
    add ? requantize_row<true, false>(r) : requantize_row<false, false>(r);
  }
}

}  // namespace
