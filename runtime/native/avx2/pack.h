// Keys and values, packed at run time into the B layout of layout.h. Included by kernels_avx2.cc only.
#pragma once

#include "../kernels.h"
#include "../layout.h"
#include "math.h"

namespace {

inline void clear(int8_t* at, ptrdiff_t bytes) {  // a multiple of 64
  const __m256i zero = _mm256_setzero_si256();
  for (ptrdiff_t i = 0; i < bytes; i += 32) _mm256_store_si256(reinterpret_cast<__m256i*>(at + i), zero);
}

// A key is a column of B: its quads go to one 4-byte place in each quad of its panel.
void pack_keys(const qvit::PackArgs& p) {
  const ptrdiff_t quads = qvit::quads_of(p.width), panels = qvit::panels_of(p.rows);
  const ptrdiff_t panel_bytes = quads * qvit::kQuadBytes;
  if (p.rows % qvit::kPanel != 0) clear(p.packed + (panels - 1) * panel_bytes, panel_bytes);
  for (ptrdiff_t c = p.rows; c < panels * qvit::kPanel; ++c) p.correction[c] = 0;
  for (int row = 0; row < p.rows; ++row) {
    const uint8_t* from = p.codes + row * p.stride;
    int8_t* to = p.packed + (row / qvit::kPanel) * panel_bytes + (row % qvit::kPanel) * qvit::kQuad;
    int32_t sum = 0;
    ptrdiff_t k = 0;
    const __m256i bias8 = _mm256_set1_epi8(static_cast<char>(p.bias)), ones8 = _mm256_set1_epi8(1);
    const __m256i ones16 = _mm256_set1_epi16(1);
    __m256i sums = _mm256_setzero_si256();
    for (; k + 32 <= p.width; k += 32) {
      const __m256i codes = _mm256_sub_epi8(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + k)), bias8);
      sums = _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(ones8, codes), ones16));
      alignas(32) uint32_t words[8];
      _mm256_store_si256(reinterpret_cast<__m256i*>(words), codes);
      for (int q = 0; q < 8; ++q) __builtin_memcpy(to + (k / 4 + q) * qvit::kQuadBytes, &words[q], 4);
    }
    alignas(32) int32_t lanes[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), sums);
    for (int i = 0; i < 8; ++i) sum += lanes[i];
    for (; k < p.width; k += 4) {
      int8_t quad[4] = {0, 0, 0, 0};
      for (int i = 0; i < 4 && k + i < p.width; ++i) {
        quad[i] = static_cast<int8_t>(from[k + i] - p.bias);
        sum += quad[i];
      }
      __builtin_memcpy(to + (k / 4) * qvit::kQuadBytes, quad, 4);
    }
    p.correction[row] = (sum + p.b_shift * p.width) * p.a_qmin;
  }
}

// A value row is an input of B: four rows are interleaved byte by byte, 16 columns at a time.
void pack_values(const qvit::PackArgs& p) {
  const ptrdiff_t quads = qvit::quads_of(p.rows), panels = qvit::panels_of(p.width);
  for (ptrdiff_t panel = 0; panel < panels; ++panel) {
    int32_t sums[qvit::kPanel] = {};
    const int first = static_cast<int>(panel) * qvit::kPanel;
    const int valid = p.width - first < qvit::kPanel ? p.width - first : qvit::kPanel;
    for (ptrdiff_t q = 0; q < quads; ++q) {
      int8_t* to = p.packed + (panel * quads + q) * qvit::kQuadBytes;
      const int row = static_cast<int>(q) * qvit::kQuad;
      if (valid == qvit::kPanel && row + qvit::kQuad <= p.rows) {
        const uint8_t* from = p.codes + row * p.stride + first;
        const __m128i bias = _mm_set1_epi8(static_cast<char>(p.bias));
        __m128i r[4];
        for (int i = 0; i < 4; ++i) {
          r[i] = _mm_sub_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i * p.stride)), bias);
        }
        const __m128i a = _mm_unpacklo_epi8(r[0], r[1]), b = _mm_unpackhi_epi8(r[0], r[1]);
        const __m128i c = _mm_unpacklo_epi8(r[2], r[3]), d = _mm_unpackhi_epi8(r[2], r[3]);
        __m128i* out = reinterpret_cast<__m128i*>(to);
        _mm_store_si128(out, _mm_unpacklo_epi16(a, c));
        _mm_store_si128(out + 1, _mm_unpackhi_epi16(a, c));
        _mm_store_si128(out + 2, _mm_unpacklo_epi16(b, d));
        _mm_store_si128(out + 3, _mm_unpackhi_epi16(b, d));
      } else {
        for (int c = 0; c < qvit::kPanel; ++c) {
          for (int k = 0; k < qvit::kQuad; ++k) {
            const bool inside = c < valid && row + k < p.rows;
            to[c * qvit::kQuad + k] =
                inside ? static_cast<int8_t>(p.codes[(row + k) * p.stride + first + c] - p.bias) : int8_t{0};
          }
        }
      }
      if (p.a_qmin != 0) {
        for (int c = 0; c < qvit::kPanel; ++c) {
          for (int k = 0; k < qvit::kQuad; ++k) sums[c] += to[c * qvit::kQuad + k];
        }
      }
    }
    for (int c = 0; c < qvit::kPanel; ++c) p.correction[first + c] = (sums[c] + p.rows * p.b_shift) * p.a_qmin;
  }
}

}  // namespace
