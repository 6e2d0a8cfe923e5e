// Integer GEMM with its epilogue, sixteen columns at a time. Included by kernels_avx512.cc only.
#pragma once

#include "../kernels.h"
#include "gemm_integer.h"
#include "math.h"
#include "tile.h"

namespace {

using qvit::Epilogue;
using qvit::GemmArgs;
using qvit::kPanel;
using qvit::kTileRows;

// rows [row, row + rows) of panels [panel, panel + panels); gelu: the table, where the epilogue has a GELU.
struct Tile {
  int row, rows, panel, panels;
  const float* gelu;
};

template <bool kGelu>
struct ChooseGelu {
  using Type = NoGelu;
};
template <>
struct ChooseGelu<true> {
  using Type = Gelu;
};
template <Epilogue kEpilogue>
inline constexpr bool kHasGelu = kEpilogue == Epilogue::kGelu || kEpilogue == Epilogue::kGeluCodes;
template <Epilogue kEpilogue>
using GeluFor = typename ChooseGelu<kHasGelu<kEpilogue>>::Type;

constexpr ptrdiff_t kRowSums = kTilePanels * kPanel;

// What a row starts from: the bias in the first block, later what earlier blocks have left in `partial` [6][4][16].
struct FromBias {
  const float* bias;
  __m512 at(int, int p) const { return _mm512_loadu_ps(bias + p * kPanel); }
};
struct FromPartial {
  const float* partial;
  __m512 at(int r, int p) const { return _mm512_load_ps(partial + r * kRowSums + p * kPanel); }
};

inline __m512 scaled(const int32_t* sums, int r, int p, __m512 scale, __m512 start) {
  const __m512i sum = _mm512_load_si512(sums + r * kRowSums + p * kPanel);
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, start);
}

// One panel, complete or not, on its way out.
template <Epilogue kEpilogue, typename Start>
inline void finish_panel(const GemmArgs& g, const Tile& t, int p, const int32_t* sums, const float* scales,
                         Start start) {
  constexpr bool kToCodes = kEpilogue == Epilogue::kCodes || kEpilogue == Epilogue::kGeluCodes;
  const ptrdiff_t column = (t.panel + p) * static_cast<ptrdiff_t>(kPanel), stride = g.out_stride;
  const ptrdiff_t first = t.row * stride + column;
  const __m512 scale = _mm512_loadu_ps(scales + p * kPanel);
  const __m512 levels = kToCodes ? _mm512_loadu_ps(g.levels + column) : scale;
  const __m512 factor = kEpilogue == Epilogue::kGeluCodes ? _mm512_loadu_ps(g.grid_factor + column) : scale;
  const __m512 shift = kEpilogue == Epilogue::kGeluCodes ? _mm512_loadu_ps(g.grid_shift + column) : scale;
  const __mmask16 valid = first_columns(g.columns - column);
  uint8_t* codes = kToCodes ? g.codes + first : nullptr;
  float* out = kToCodes ? nullptr : g.out + first;
  const float* residual = kEpilogue == Epilogue::kAdd ? g.residual + first : nullptr;
  const GeluFor<kEpilogue> gelu_of(t.gelu);
  const int rows = t.rows;
  for (int r = 0; r < rows; ++r) {
    __m512 v = gelu_of(scaled(sums, r, p, scale, start.at(r, p)));
    if constexpr (kEpilogue == Epilogue::kGeluCodes) v = _mm512_fmadd_ps(v, factor, shift);
    if constexpr (kToCodes) {
      _mm_mask_storeu_epi8(codes + r * stride, valid, to_codes(v, levels));
    } else {
      if constexpr (kEpilogue == Epilogue::kAdd)
        v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(valid, residual + r * stride));
      _mm512_mask_storeu_ps(out + r * stride, valid, v);
    }
  }
}

// Four whole panels to codes: 64 columns of a row are packed and stored together. Clipping is left to the saturation
// of the packs (below) and one minimum of bytes (above); that steps fit 32 bits was established at load.
template <Epilogue kEpilogue, typename Start>
inline void finish_codes(const GemmArgs& g, const Tile& t, const int32_t* sums, const float* scales, Start start) {
  const ptrdiff_t column = t.panel * static_cast<ptrdiff_t>(kPanel), stride = g.out_stride;
  // packs work inside 128-bit lanes: lane l of the result holds dwords (panel 0, 1, 2, 3) of lane l.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  __m512 scale[kTilePanels];
  __m512i levels = _mm512_setzero_si512();
  for (int p = 0; p < kTilePanels; ++p) {
    scale[p] = _mm512_loadu_ps(scales + p * kPanel);
    const __m128i bytes = _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(_mm512_loadu_ps(g.levels + column + p * kPanel)));
    levels = p == 0   ? _mm512_inserti32x4(levels, bytes, 0)
             : p == 1 ? _mm512_inserti32x4(levels, bytes, 1)
             : p == 2 ? _mm512_inserti32x4(levels, bytes, 2)
                      : _mm512_inserti32x4(levels, bytes, 3);
  }
  uint8_t* codes = g.codes + t.row * stride + column;
  const float *factor = g.grid_factor + column, *shift = g.grid_shift + column;
  const GeluFor<kEpilogue> gelu_of(t.gelu);
  const int rows = t.rows;
  for (int r = 0; r < rows; ++r) {
    __m512i steps[kTilePanels];
#pragma GCC unroll 4
    for (int p = 0; p < kTilePanels; ++p) {
      __m512 v = gelu_of(scaled(sums, r, p, scale[p], start.at(r, p)));
      if constexpr (kEpilogue == Epilogue::kGeluCodes) {
        v = _mm512_fmadd_ps(v, _mm512_loadu_ps(factor + p * kPanel), _mm512_loadu_ps(shift + p * kPanel));
      }
      steps[p] = _mm512_cvtps_epi32(v);
    }
    const __m512i bytes =
        _mm512_packus_epi16(_mm512_packs_epi32(steps[0], steps[1]), _mm512_packs_epi32(steps[2], steps[3]));
    _mm512_storeu_si512(codes + r * stride, _mm512_min_epu8(_mm512_permutexvar_epi32(order, bytes), levels));
  }
}

// Four whole panels to values, a row's 64 columns together.
template <Epilogue kEpilogue, typename Start>
inline void finish_values(const GemmArgs& g, const Tile& t, const int32_t* sums, const float* scales, Start start) {
  const ptrdiff_t column = t.panel * static_cast<ptrdiff_t>(kPanel), stride = g.out_stride;
  const __m512 scale[kTilePanels] = {_mm512_loadu_ps(scales), _mm512_loadu_ps(scales + kPanel),
                                     _mm512_loadu_ps(scales + 2 * kPanel), _mm512_loadu_ps(scales + 3 * kPanel)};
  float* out = g.out + t.row * stride + column;
  const float* residual = kEpilogue == Epilogue::kAdd ? g.residual + t.row * stride + column : nullptr;
  const GeluFor<kEpilogue> gelu_of(t.gelu);
  const int rows = t.rows;
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int p = 0; p < kTilePanels; ++p) {
      __m512 v = gelu_of(scaled(sums, r, p, scale[p], start.at(r, p)));
      if constexpr (kEpilogue == Epilogue::kAdd)
        v = _mm512_add_ps(v, _mm512_loadu_ps(residual + r * stride + p * kPanel));
      _mm512_storeu_ps(out + r * stride + p * kPanel, v);
    }
  }
}

template <Epilogue kEpilogue, typename Start>
inline void finish(const GemmArgs& g, const Tile& t, const int32_t* sums, const float* scales, Start start) {
  if (t.panels == kTilePanels && (t.panel + kTilePanels) * kPanel <= g.columns) {
    if constexpr (kEpilogue == Epilogue::kCodes || kEpilogue == Epilogue::kGeluCodes) {
      finish_codes<kEpilogue>(g, t, sums, scales, start);
    } else {
      finish_values<kEpilogue>(g, t, sums, scales, start);
    }
    return;
  }
  for (int p = 0; p < t.panels; ++p) finish_panel<kEpilogue>(g, t, p, sums, scales, start);
}

// One block of several, not the last.
template <typename Start>
inline void keep(const Tile& t, const int32_t* sums, const float* scales, Start start, float* partial) {
  for (int p = 0; p < t.panels; ++p) {
    const __m512 scale = _mm512_loadu_ps(scales + p * kPanel);
    for (int r = 0; r < t.rows; ++r) {
      _mm512_store_ps(partial + r * kRowSums + p * kPanel, scaled(sums, r, p, scale, start.at(r, p)));
    }
  }
}

// Rare (unsigned keys or values): b_shift times the sum of each row. May wrap, as in kernels_scalar.cc.
inline void add_shift(const GemmArgs& g, const Tile& t, int32_t* sums) {
  for (int r = 0; r < t.rows; ++r) {
    const uint8_t* a = g.a + (t.row + r) * g.a_stride;
    int32_t sum = 0;
    for (int k = 0; k < g.block_width; ++k) sum += a[k];
    const __m512i shift = _mm512_set1_epi32(sum * g.b_shift);
    for (int p = 0; p < t.panels; ++p) {
      int32_t* at = sums + r * kRowSums + p * kPanel;
      _mm512_store_si512(at, _mm512_add_epi32(_mm512_load_si512(at), shift));
    }
  }
}

template <Epilogue kEpilogue>
inline void one_tile(const GemmArgs& g, const Tile& t, int quads) {
  alignas(64) int32_t sums[kTileRows * kRowSums];
  alignas(64) float partial[kTileRows * kRowSums];
  const ptrdiff_t block_bytes = static_cast<ptrdiff_t>(quads) * qvit::kQuadBytes, panel_bytes = g.blocks * block_bytes;
  const ptrdiff_t column = t.panel * static_cast<ptrdiff_t>(kPanel);
  const uint8_t* a = g.a + t.row * g.a_stride;
  const int8_t* b = g.b + t.panel * panel_bytes;
  for (int block = 0; block < g.blocks; ++block) {
    const ptrdiff_t at = block * g.column_stride + column;
    tile_sums(a + static_cast<ptrdiff_t>(block) * g.block_width, g.a_stride, t.rows, b + block * block_bytes,
              panel_bytes, t.panels, quads, g.correction + at, sums);
    if (g.b_shift != 0) add_shift(g, t, sums);
    if constexpr (qvit::is_integer(kEpilogue)) {  // of one block
      for (int p = 0; p < t.panels; ++p) {
        const ptrdiff_t first = column + p * kPanel;
        if (g.integer.out.narrow != nullptr) {
          finish_integers<kEpilogue, true>(g, t.row, t.rows, first, sums + p * kPanel, kRowSums);
        } else {
          finish_integers<kEpilogue, false>(g, t.row, t.rows, first, sums + p * kPanel, kRowSums);
        }
      }
      return;
    }
    const bool last = block + 1 == g.blocks;
    const FromBias bias = {g.bias + column};
    const FromPartial before = {partial};
    if (last && block == 0) {
      finish<kEpilogue>(g, t, sums, g.scale + at, bias);
    } else if (last) {
      finish<kEpilogue>(g, t, sums, g.scale + at, before);
    } else if (block == 0) {
      keep(t, sums, g.scale + at, bias, partial);
    } else {
      keep(t, sums, g.scale + at, before, partial);
    }
  }
}

template <Epilogue kEpilogue>
void gemm_with(const GemmArgs& g) {
  const int panels = static_cast<int>(qvit::panels_of(g.columns)),
            quads = static_cast<int>(qvit::quads_of(g.block_width));
  const float* gelu = kHasGelu<kEpilogue> ? qvit::gelu_table() : nullptr;
  for (int chunk = 0; chunk < g.rows; chunk += g.chunk_rows) {
    const int end = g.rows - chunk < g.chunk_rows ? g.rows : chunk + g.chunk_rows;
    for (int p = 0; p < panels; p += kTilePanels) {
      for (int row = chunk; row < end; row += kTileRows) {
        const int rows = end - row < kTileRows ? end - row : kTileRows;
        const int width = panels - p < kTilePanels ? panels - p : kTilePanels;
        one_tile<kEpilogue>(g, {row, rows, p, width, gelu}, quads);
      }
    }
  }
}

void gemm(const GemmArgs& g) {
  switch (g.epilogue) {
    case Epilogue::kValues: gemm_with<Epilogue::kValues>(g); break;
    case Epilogue::kAdd: gemm_with<Epilogue::kAdd>(g); break;
    case Epilogue::kGelu: gemm_with<Epilogue::kGelu>(g); break;
    case Epilogue::kCodes: gemm_with<Epilogue::kCodes>(g); break;
    case Epilogue::kGeluCodes: gemm_with<Epilogue::kGeluCodes>(g); break;
    case Epilogue::kSums: gemm_with<Epilogue::kSums>(g); break;
    case Epilogue::kRequantize: gemm_with<Epilogue::kRequantize>(g); break;
    case Epilogue::kAddRequantize: gemm_with<Epilogue::kAddRequantize>(g); break;
  }
}

}  // namespace
