// Integer GEMM with its epilogue: tiles from tile.h, turned into values or codes while they are still in registers
// or the first-level cache. Included by kernels_avx2.cc only.
#pragma once

#include "../kernels.h"
#include "math.h"
#include "tile.h"

namespace {

using qvit::Epilogue;
using qvit::GemmArgs;
using qvit::kPanel;
using qvit::kTileRows;

// Where one tile goes: columns [column, column + valid) of rows [row, row + rows).
struct Place {
  int row, rows, column, valid;
};

template <Epilogue kEpilogue>
inline void put(const GemmArgs& g, const Place& at, int row, __m256 lo, __m256 hi) {
  const ptrdiff_t offset = (at.row + row) * g.out_stride + at.column;
  if constexpr (kEpilogue == Epilogue::kCodes || kEpilogue == Epilogue::kGeluCodes) {
    if constexpr (kEpilogue == Epilogue::kGeluCodes) {
      const float *factor = g.grid_factor + at.column, *shift = g.grid_shift + at.column;
      lo = _mm256_fmadd_ps(gelu_of(lo), _mm256_loadu_ps(factor), _mm256_loadu_ps(shift));
      hi = _mm256_fmadd_ps(gelu_of(hi), _mm256_loadu_ps(factor + 8), _mm256_loadu_ps(shift + 8));
    }
    const float* levels = g.levels + at.column;
    store_bytes(g.codes + offset, to_codes(lo, hi, _mm256_loadu_ps(levels), _mm256_loadu_ps(levels + 8)), at.valid);
  } else {
    if constexpr (kEpilogue == Epilogue::kGelu) {
      lo = gelu_of(lo);
      hi = gelu_of(hi);
    }
    if (at.valid == kPanel) {
      if constexpr (kEpilogue == Epilogue::kAdd) {
        lo = _mm256_add_ps(lo, _mm256_loadu_ps(g.residual + offset));
        hi = _mm256_add_ps(hi, _mm256_loadu_ps(g.residual + offset + 8));
      }
      _mm256_storeu_ps(g.out + offset, lo);
      _mm256_storeu_ps(g.out + offset + 8, hi);
    } else {
      alignas(32) float all[kPanel];
      _mm256_store_ps(all, lo);
      _mm256_store_ps(all + 8, hi);
      for (int c = 0; c < at.valid; ++c) {
        if constexpr (kEpilogue == Epilogue::kAdd) all[c] += g.residual[offset + c];
        g.out[offset + c] = all[c];
      }
    }
  }
}

inline __m256 scaled(const int32_t* acc, __m256i correction, __m256 scale, __m256 start) {
  const __m256i sum = _mm256_add_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(acc)), correction);
  return _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale, start);
}

inline void tile_sums(const GemmArgs& g, const Place& at, const int8_t* b, int run, int block, int quads,
                      int32_t* acc) {
  const ptrdiff_t input = static_cast<ptrdiff_t>(block) * g.block_width;
  if (run > 0) {
    narrow_tile(g.a + at.row * g.a_stride + input, g.a_stride, at.rows, b, quads, run, acc);
  } else {
    const ptrdiff_t stride = qvit::wide_stride(static_cast<ptrdiff_t>(g.blocks) * g.block_width);
    const int16_t* a = g.wide + (at.row % qvit::kChunkRows) * stride + input;
    wide_tile(a, stride * static_cast<ptrdiff_t>(sizeof(int16_t)), at.rows, b, quads, acc);
  }
}

// Rare (8-bit unsigned keys or values): b_shift times the sum of each row.
inline void add_shift(const GemmArgs& g, const Place& at, int32_t* acc) {
  for (int r = 0; r < at.rows; ++r) {
    const uint8_t* a = g.a + (at.row + r) * g.a_stride;
    int32_t sum = 0;
    for (int k = 0; k < g.block_width; ++k) sum += a[k];
    for (int c = 0; c < kPanel; ++c) acc[r * kPanel + c] += sum * g.b_shift;
  }
}

template <Epilogue kEpilogue>
inline void one_tile(const GemmArgs& g, const Place& at, const int8_t* b, const int16_t* runs, int quads) {
  alignas(32) int32_t acc[kTileRows * kPanel];
  const __m256 bias_lo = _mm256_loadu_ps(g.bias + at.column), bias_hi = _mm256_loadu_ps(g.bias + at.column + 8);
  alignas(32) float partial[kTileRows * kPanel];
  for (int block = 0; block < g.blocks; ++block) {
    tile_sums(g, at, b + static_cast<ptrdiff_t>(block) * quads * qvit::kQuadBytes, runs[block], block, quads, acc);
    if (g.b_shift != 0) add_shift(g, at, acc);
    const ptrdiff_t column = block * g.column_stride + at.column;
    const __m256i* correction = reinterpret_cast<const __m256i*>(g.correction + column);
    const __m256i correction_lo = _mm256_loadu_si256(correction), correction_hi = _mm256_loadu_si256(correction + 1);
    const __m256 scale_lo = _mm256_loadu_ps(g.scale + column), scale_hi = _mm256_loadu_ps(g.scale + column + 8);
    for (int r = 0; r < at.rows; ++r) {
      float* sum = partial + r * kPanel;
      const int32_t* tile = acc + r * kPanel;
      const __m256 lo = scaled(tile, correction_lo, scale_lo, block == 0 ? bias_lo : _mm256_load_ps(sum));
      const __m256 hi = scaled(tile + 8, correction_hi, scale_hi, block == 0 ? bias_hi : _mm256_load_ps(sum + 8));
      if (block + 1 < g.blocks) {
        _mm256_store_ps(sum, lo);
        _mm256_store_ps(sum + 8, hi);
      } else {
        put<kEpilogue>(g, at, r, lo, hi);
      }
    }
  }
}

// Widen a chunk of rows to 16 bits once, for all panels of the wide path.
inline void widen_rows(const GemmArgs& g, int row, int rows) {
  const ptrdiff_t inputs = static_cast<ptrdiff_t>(g.blocks) * g.block_width, stride = qvit::wide_stride(inputs);
  for (int r = 0; r < rows; ++r) {
    const uint8_t* from = g.a + (row + r) * g.a_stride;
    int16_t* to = g.wide + ((row + r) % qvit::kChunkRows) * stride;
    for (ptrdiff_t k = 0; k < inputs + qvit::kQuad; k += 16) {  // a last quad may reach past the row: see kSlack
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + k));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + k), _mm256_cvtepu8_epi16(bytes));
    }
  }
}

template <Epilogue kEpilogue>
void gemm_with(const GemmArgs& g) {
  const int quads = static_cast<int>(qvit::quads_of(g.block_width));
  const int panels = static_cast<int>(qvit::panels_of(g.columns));
  const ptrdiff_t panel_bytes = static_cast<ptrdiff_t>(g.blocks) * quads * qvit::kQuadBytes;
  bool any_wide = false;
  for (int i = 0; i < panels * g.blocks; ++i) any_wide |= g.runs[i] == 0;
  for (int chunk = 0; chunk < g.rows; chunk += qvit::kChunkRows) {
    const int chunk_rows = g.rows - chunk < qvit::kChunkRows ? g.rows - chunk : qvit::kChunkRows;
    if (any_wide) widen_rows(g, chunk, chunk_rows);
    for (int p = 0; p < panels; ++p) {
      const int column = p * kPanel;
      const int valid = g.columns - column < kPanel ? g.columns - column : kPanel;
      for (int row = 0; row < chunk_rows; row += kTileRows) {
        const int rows = chunk_rows - row < kTileRows ? chunk_rows - row : kTileRows;
        one_tile<kEpilogue>(g, {chunk + row, rows, column, valid}, g.b + p * panel_bytes, g.runs + p * g.blocks,
                            quads);
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
