// Rows of integers, eight at a time: loads, stores, clipping. Included by kernels_avx2.cc and kernels_avx512.cc.
#pragma once

#include <cstddef>

#include "../kernels_integer.h"
#include "math.h"

namespace {

inline __m256i load_integers(const int64_t* at) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)); }
inline __m256i load_integers(const int32_t* at) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)); }

// The first `count` of eight; the others are zero and not read.
inline __m256i load_integers(const int32_t* at, int count) {
  return count >= 8 ? load_integers(at) : _mm256_maskload_epi32(at, first_lanes(count));
}

inline void store_integers(int32_t* at, __m256i v, int count) {
  if (count >= 8) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), v);
  } else {
    _mm256_maskstore_epi32(at, first_lanes(count), v);
  }
}

// The first `count` of eight codes as they are stored; the others are zero and not read.
inline __m256i load_codes(const qvit::CodeRow& row, ptrdiff_t at, int count) {
  if (row.narrow == nullptr) return load_integers(row.wide + at, count);
  if (count >= 8) return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(row.narrow + at)));
  alignas(8) uint8_t bytes[8] = {};
  for (int i = 0; i < count; ++i) bytes[i] = row.narrow[at + i];
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)));
}

// Eight codes of 0..255 as bytes, in the low half.
inline __m128i to_bytes(__m256i codes) {
  const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
  return _mm_packus_epi16(words, words);
}

inline void store_first_bytes(uint8_t* at, __m128i bytes, int count) {
  if (count >= 8) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(at), bytes);
    return;
  }
  alignas(8) uint8_t all[8];
  _mm_storel_epi64(reinterpret_cast<__m128i*>(all), bytes);
  for (int i = 0; i < count; ++i) at[i] = all[i];
}

template <bool kNarrow>
inline void store_codes(const qvit::MutableCodeRow& out, ptrdiff_t at, __m256i codes, int count) {
  if constexpr (kNarrow) {
    store_first_bytes(out.narrow + at, to_bytes(codes), count);
  } else {
    store_integers(out.wide + at, codes, count);
  }
}

// The grid of eight columns: clipped, and as stored.
template <bool kNarrow>
struct Clip8 {
  __m256i low, high;
  Clip8(const qvit::Clipping& clip, ptrdiff_t c)
      : low(load_integers(clip.low + c)), high(load_integers(clip.high + c)) {}
  __m256i operator()(__m256i v) const {
    v = _mm256_max_epi32(_mm256_min_epi32(v, high), low);
    return kNarrow ? _mm256_sub_epi32(v, low) : v;
  }
};

// The low halves of eight 64-bit lanes.
inline __m256i low_halves(__m256i a, __m256i b) {
  const __m256 mixed = _mm256_shuffle_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), 0x88);
  return _mm256_permute4x64_epi64(_mm256_castps_si256(mixed), 0xD8);
}

inline int64_t sum_lanes64(__m256i v) {
  const __m128i half = _mm_add_epi64(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  return _mm_cvtsi128_si64(half) + _mm_extract_epi64(half, 1);
}

inline int64_t sum_lanes32(__m256i v) {  // signed; the sum may need 64 bits
  return sum_lanes64(_mm256_add_epi64(_mm256_cvtepi32_epi64(_mm256_castsi256_si128(v)),
                                      _mm256_cvtepi32_epi64(_mm256_extracti128_si256(v, 1))));
}

inline int32_t max_lanes32(__m256i v) {
  __m128i half = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4E));
  return _mm_cvtsi128_si32(_mm_max_epi32(half, _mm_shuffle_epi32(half, 0xB1)));
}

}  // namespace
