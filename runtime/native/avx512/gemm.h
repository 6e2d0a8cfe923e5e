// Integer GEMM with its epilogue, sixteen columns at a time. Included by kernels_avx512.cc only.
#pragma once

#include "../kernels.h"
#include "math.h"
#include "tile.h"

namespace {

using qvit::Epilogue;
using qvit::GemmArgs;
using qvit::kPanel;
using qvit::kTileRows;

// rows [row, row + rows) of panels [panel, panel + panels).
struct Tile {
  int row, rows, panel, panels;
};

constexpr ptrdiff_t kRowSums = kTilePanels * kPanel;

// One panel of the tile: v = start + (sum + correction) * scale, row by row, and out by way of the epilogue.
template <Epilogue kEpilogue, bool kOneBlock>
inline void finish_panel(const GemmArgs& g, const Tile& t, int p, const int32_t* sums, const float* partial) {
  constexpr bool kToCodes = kEpilogue == Epilogue::kCodes || kEpilogue == Epilogue::kGeluCodes;
  const ptrdiff_t column = (t.panel + p) * static_cast<ptrdiff_t>(kPanel), stride = g.out_stride;
  const ptrdiff_t first = t.row * stride + column;
  const __m512 bias = _mm512_loadu_ps(g.bias + column), scale = _mm512_loadu_ps(g.scale + column);
  const __m512i correction = _mm512_loadu_si512(g.correction + column);
  const __m512 levels = kToCodes ? _mm512_loadu_ps(g.levels + column) : bias;
  const __m512 factor = kEpilogue == Epilogue::kGeluCodes ? _mm512_loadu_ps(g.grid_factor + column) : bias;
  const __m512 shift = kEpilogue == Epilogue::kGeluCodes ? _mm512_loadu_ps(g.grid_shift + column) : bias;
  const __mmask16 valid = first_columns(g.columns - column);
  uint8_t* codes = kToCodes ? g.codes + first : nullptr;
  float* out = kToCodes ? nullptr : g.out + first;
  const float* residual = kEpilogue == Epilogue::kAdd ? g.residual + first : nullptr;
  const int rows = t.rows;
  for (int r = 0; r < rows; ++r) {
    __m512 v;
    if constexpr (kOneBlock) {
      const __m512i sum = _mm512_load_si512(sums + r * kRowSums + p * kPanel);
      v = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(sum, correction)), scale, bias);
    } else {
      v = _mm512_load_ps(partial + r * kRowSums + p * kPanel);
    }
    if constexpr (kEpilogue == Epilogue::kGelu || kEpilogue == Epilogue::kGeluCodes) v = gelu_of(v);
    if constexpr (kEpilogue == Epilogue::kGeluCodes) v = _mm512_fmadd_ps(v, factor, shift);
    if constexpr (kToCodes) {
      _mm_mask_storeu_epi8(codes + r * stride, valid, to_codes(v, levels));
    } else {
      if constexpr (kEpilogue == Epilogue::kAdd) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(valid, residual + r * stride));
      _mm512_mask_storeu_ps(out + r * stride, valid, v);
    }
  }
}

// One block of several: partial += (sum + correction) * scale.
inline void add_block(const GemmArgs& g, const Tile& t, int block, const int32_t* sums, float* partial) {
  for (int p = 0; p < t.panels; ++p) {
    const ptrdiff_t column = block * g.column_stride + (t.panel + p) * kPanel;
    const __m512 scale = _mm512_loadu_ps(g.scale + column);
    const __m512i correction = _mm512_loadu_si512(g.correction + column);
    for (int r = 0; r < t.rows; ++r) {
      const ptrdiff_t at = r * kRowSums + p * kPanel;
      const __m512 v = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_load_si512(sums + at), correction));
      _mm512_store_ps(partial + at, _mm512_fmadd_ps(v, scale, _mm512_load_ps(partial + at)));
    }
  }
}

// Rare (unsigned keys or values): b_shift times the sum of each row.
inline void add_shift(const GemmArgs& g, const Tile& t, int32_t* sums) {
  for (int r = 0; r < t.rows; ++r) {
    const uint8_t* a = g.a + (t.row + r) * g.a_stride;
    int32_t sum = 0;
    for (int k = 0; k < g.block_width; ++k) sum += a[k];
    for (int c = 0; c < t.panels * kPanel; ++c) sums[r * kRowSums + c] += sum * g.b_shift;
  }
}

template <Epilogue kEpilogue>
inline void one_tile(const GemmArgs& g, const Tile& t, int quads) {
  alignas(64) int32_t sums[kTileRows * kRowSums];
  const ptrdiff_t block_bytes = static_cast<ptrdiff_t>(quads) * qvit::kQuadBytes, panel_bytes = g.blocks * block_bytes;
  const uint8_t* a = g.a + t.row * g.a_stride;
  const int8_t* b = g.b + t.panel * panel_bytes;
  if (g.blocks == 1) {
    tile_sums(a, g.a_stride, t.rows, b, panel_bytes, t.panels, quads, sums);
    if (g.b_shift != 0) add_shift(g, t, sums);
    for (int p = 0; p < t.panels; ++p) finish_panel<kEpilogue, true>(g, t, p, sums, nullptr);
    return;
  }
  alignas(64) float partial[kTileRows * kRowSums];
  for (int p = 0; p < t.panels; ++p) {
    const __m512 bias = _mm512_loadu_ps(g.bias + (t.panel + p) * kPanel);
    for (int r = 0; r < t.rows; ++r) _mm512_store_ps(partial + r * kRowSums + p * kPanel, bias);
  }
  for (int block = 0; block < g.blocks; ++block) {
    tile_sums(a + static_cast<ptrdiff_t>(block) * g.block_width, g.a_stride, t.rows, b + block * block_bytes,
              panel_bytes, t.panels, quads, sums);
    add_block(g, t, block, sums, partial);
  }
  for (int p = 0; p < t.panels; ++p) finish_panel<kEpilogue, false>(g, t, p, nullptr, partial);
}

template <Epilogue kEpilogue>
void gemm_with(const GemmArgs& g) {
  const int panels = static_cast<int>(qvit::panels_of(g.columns)), quads = static_cast<int>(qvit::quads_of(g.block_width));
  for (int chunk = 0; chunk < g.rows; chunk += g.chunk_rows) {
    const int end = g.rows - chunk < g.chunk_rows ? g.rows : chunk + g.chunk_rows;
    for (int p = 0; p < panels; p += kTilePanels) {
      for (int row = chunk; row < end; row += kTileRows) {
        const int rows = end - row < kTileRows ? end - row : kTileRows;
        one_tile<kEpilogue>(g, {row, rows, p, panels - p < kTilePanels ? panels - p : kTilePanels}, quads);
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
  }
}

}  // namespace
