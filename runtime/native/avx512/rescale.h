// R(x; m, e) and the clipping behind it, sixteen columns at a time, and the Requantize kernel. Included by
// kernels_avx512.cc only.
#pragma once

#include "../kernels_integer.h"
#include "math.h"

namespace {

// The multipliers, roundings and shifts of sixteen columns, held in registers over many rows.
struct Rescale16 {
  __m512i multiplier[2], half[2], shift[2], low_halves;

  Rescale16(const qvit::Rescaling& r, ptrdiff_t c)
      : low_halves(_mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)) {
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      multiplier[h] = _mm512_loadu_si512(r.multiplier + c + 8 * h);
      half[h] = _mm512_loadu_si512(r.half + c + 8 * h);
      shift[h] = _mm512_loadu_si512(r.shift + c + 8 * h);
    }
  }

  __m512i operator()(__m512i x) const {
    const __m512i first = _mm512_mul_epi32(_mm512_cvtepi32_epi64(_mm512_castsi512_si256(x)), multiplier[0]);
    const __m512i second = _mm512_mul_epi32(_mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(x, 1)), multiplier[1]);
    return _mm512_permutex2var_epi32(_mm512_srav_epi64(_mm512_add_epi64(first, half[0]), shift[0]), low_halves,
                                     _mm512_srav_epi64(_mm512_add_epi64(second, half[1]), shift[1]));
  }
};

// The grid of sixteen columns: clipped, and as stored.
template <bool kNarrow>
struct Clip16 {
  __m512i low, high;
  Clip16(const qvit::Clipping& clip, ptrdiff_t c)
      : low(_mm512_loadu_si512(clip.low + c)), high(_mm512_loadu_si512(clip.high + c)) {}
  __m512i operator()(__m512i v) const {
    v = _mm512_max_epi32(_mm512_min_epi32(v, high), low);
    return kNarrow ? _mm512_sub_epi32(v, low) : v;
  }
};

inline __m512i load_codes(const qvit::CodeRow& row, ptrdiff_t at, __mmask16 valid) {
  if (row.narrow == nullptr) return _mm512_maskz_loadu_epi32(valid, row.wide + at);
  return _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(valid, row.narrow + at));
}

template <bool kNarrow>
inline void store_codes(const qvit::MutableCodeRow& out, ptrdiff_t at, __m512i codes, __mmask16 valid) {
  if constexpr (kNarrow) {
    _mm_mask_storeu_epi8(out.narrow + at, valid, _mm512_cvtepi32_epi8(codes));
  } else {
    _mm512_mask_storeu_epi32(out.wide + at, valid, codes);
  }
}

template <bool kAdd, bool kNarrow>
void requantize_row(const qvit::RequantizeArgs& r) {
  for (ptrdiff_t c = 0; c < r.count; c += 16) {
    const __mmask16 valid = first_columns(r.count - c);
    __m512i codes = Rescale16(r.left_scale, c)(load_codes(r.left, c, valid));
    if constexpr (kAdd) codes = _mm512_add_epi32(codes, Rescale16(r.right_scale, c)(load_codes(r.right, c, valid)));
    store_codes<kNarrow>(r.out, c, Clip16<kNarrow>(r.clip, c)(codes), valid);
  }
}

void requantize(const qvit::RequantizeArgs& r) {
  const bool add = r.right.narrow != nullptr || r.right.wide != nullptr;
  if (!r.small) {
    qvit::scalar::requantize(r);
  } else if (r.out.narrow != nullptr) {
    add ? requantize_row<true, true>(r) : requantize_row<false, true>(r);
  } else {
    add ? requantize_row<true, false>(r) : requantize_row<false, false>(r);
  }
}

}  // namespace
