// R(x; m, e) and the clipping behind it, in 64-bit lanes, and the Requantize kernel. Included by kernels_avx2.cc only.
//
// AVX2 multiplies signed 32-bit numbers into 64-bit lanes but shifts those only logically: 2^63 is added before the
// shift and what has become of it taken off after.
#pragma once

#include "../kernels_integer.h"
#include "math.h"

namespace {

using qvit::Clipping;
using qvit::Rescaling;

inline __m256i load64(const int64_t* at) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)); }

inline __m256i shift_right64(__m256i v, __m256i by) {
  const __m256i top = _mm256_set1_epi64x(INT64_MIN);
  return _mm256_sub_epi64(_mm256_srlv_epi64(_mm256_xor_si256(v, top), by), _mm256_srlv_epi64(top, by));
}

// Four columns from `c` on; the low halves of the lanes of x count.
inline __m256i rescale4(__m256i x, const Rescaling& r, ptrdiff_t c) {
  const __m256i product = _mm256_add_epi64(_mm256_mul_epi32(x, load64(r.multiplier + c)), load64(r.half + c));
  return shift_right64(product, load64(r.shift + c));
}

inline __m256i clip4(__m256i v, const Clipping& clip, ptrdiff_t c) {
  const __m256i low = load64(clip.low + c), high = load64(clip.high + c);
  v = _mm256_blendv_epi8(v, high, _mm256_cmpgt_epi64(v, high));
  return _mm256_blendv_epi8(v, low, _mm256_cmpgt_epi64(low, v));
}

// The low halves of eight 64-bit lanes.
inline __m256i low_halves(__m256i a, __m256i b) {
  const __m256 mixed = _mm256_shuffle_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), 0x88);
  return _mm256_permute4x64_epi64(_mm256_castps_si256(mixed), 0xD8);
}

inline __m256i load_codes8(const qvit::CodeRow& row, ptrdiff_t at) {
  if (row.narrow != nullptr) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(row.narrow + at)));
  }
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row.wide + at));
}

// clip(R(x)) or clip(R(x) + R(y)) of eight columns, as stored: narrow codes less `low`.
template <bool kAdd, bool kNarrow>
inline __m256i requantize8(__m256i x, __m256i y, const Rescaling& left, const Rescaling& right, const Clipping& clip,
                           ptrdiff_t c) {
  __m256i half[2];
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
    const ptrdiff_t at = c + 4 * h;
    __m256i v =
        rescale4(_mm256_cvtepi32_epi64(h == 0 ? _mm256_castsi256_si128(x) : _mm256_extracti128_si256(x, 1)), left, at);
    if constexpr (kAdd) {
      v = _mm256_add_epi64(
          v, rescale4(_mm256_cvtepi32_epi64(h == 0 ? _mm256_castsi256_si128(y) : _mm256_extracti128_si256(y, 1)), right,
                      at));
    }
    v = clip4(v, clip, at);
    half[h] = kNarrow ? _mm256_sub_epi64(v, load64(clip.low + at)) : v;
  }
  return low_halves(half[0], half[1]);
}

inline void store_narrow8(uint8_t* at, __m256i codes) {  // eight codes of 0..255
  const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(at), _mm_packus_epi16(words, words));
}

template <bool kAdd, bool kNarrow>
void requantize_row(const qvit::RequantizeArgs& r) {
  ptrdiff_t c = 0;
  for (; c + 8 <= r.count; c += 8) {
    const __m256i y = kAdd ? load_codes8(r.right, c) : _mm256_setzero_si256();
    const __m256i codes = requantize8<kAdd, kNarrow>(load_codes8(r.left, c), y, r.left_scale, r.right_scale, r.clip, c);
    if constexpr (kNarrow) {
      store_narrow8(r.out.narrow + c, codes);
    } else {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(r.out.wide + c), codes);
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
