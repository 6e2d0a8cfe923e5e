// Integer GEMM with its epilogue: tiles from tile.h, turned into values or codes while they are still in registers
// or the first-level cache. Included by kernels_avx2.cc only.
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

// One tile: rows [row, row + rows) of columns [column, column + valid).
struct Tile {
  int row, rows, column, valid;
};

// Two registers' worth of per-column numbers.
struct Columns {
  __m256 lo, hi;
  explicit Columns(const float* at) : lo(_mm256_loadu_ps(at)), hi(_mm256_loadu_ps(at + 8)) {}
};

inline void store_floats(float* out, const float* residual, __m256 lo, __m256 hi, int valid) {
  alignas(32) float all[kPanel];
  _mm256_store_ps(all, lo);
  _mm256_store_ps(all + 8, hi);
  for (int c = 0; c < valid; ++c) out[c] = residual != nullptr ? all[c] + residual[c] : all[c];
}

// v = start + (acc + correction) * scale, row by row, and out by way of the epilogue. Everything a row needs is in
// local variables: a store through a byte pointer would otherwise make the compiler read the arguments again.
template <Epilogue kEpilogue, bool kOneBlock>
inline void finish_tile(const GemmArgs& g, const Tile& t, const int32_t* acc, const float* partial) {
  constexpr bool kToCodes = kEpilogue == Epilogue::kCodes || kEpilogue == Epilogue::kGeluCodes;
  const Columns bias(g.bias + t.column), scale(g.scale + t.column);
  const Columns levels(kToCodes ? g.levels + t.column : g.bias),
      factor(kEpilogue == Epilogue::kGeluCodes ? g.grid_factor + t.column : g.bias),
      shift(kEpilogue == Epilogue::kGeluCodes ? g.grid_shift + t.column : g.bias);
  const __m256i* corrections = reinterpret_cast<const __m256i*>(g.correction + t.column);
  const __m256i correction_lo = _mm256_loadu_si256(corrections), correction_hi = _mm256_loadu_si256(corrections + 1);
  const ptrdiff_t stride = g.out_stride, first = t.row * stride + t.column;
  uint8_t* codes = kToCodes ? g.codes + first : nullptr;
  float* out = kToCodes ? nullptr : g.out + first;
  const float* residual = kEpilogue == Epilogue::kAdd ? g.residual + first : nullptr;
  const int rows = t.rows, valid = t.valid;
  for (int r = 0; r < rows; ++r) {
    __m256 lo, hi;
    if constexpr (kOneBlock) {
      const __m256i* sums = reinterpret_cast<const __m256i*>(acc + r * kPanel);
      const __m256i sum_lo = _mm256_add_epi32(_mm256_load_si256(sums), correction_lo);
      const __m256i sum_hi = _mm256_add_epi32(_mm256_load_si256(sums + 1), correction_hi);
      lo = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum_lo), scale.lo, bias.lo);
      hi = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum_hi), scale.hi, bias.hi);
    } else {
      lo = _mm256_load_ps(partial + r * kPanel);
      hi = _mm256_load_ps(partial + r * kPanel + 8);
    }
    if constexpr (kEpilogue == Epilogue::kGelu || kEpilogue == Epilogue::kGeluCodes) {
      lo = gelu_of(lo);
      hi = gelu_of(hi);
    }
    if constexpr (kEpilogue == Epilogue::kGeluCodes) {
      lo = _mm256_fmadd_ps(lo, factor.lo, shift.lo);
      hi = _mm256_fmadd_ps(hi, factor.hi, shift.hi);
    }
    if constexpr (kToCodes) {
      store_bytes(codes + r * stride, to_codes(lo, hi, levels.lo, levels.hi), valid);
    } else if (valid == kPanel) {
      if constexpr (kEpilogue == Epilogue::kAdd) {
        lo = _mm256_add_ps(lo, _mm256_loadu_ps(residual + r * stride));
        hi = _mm256_add_ps(hi, _mm256_loadu_ps(residual + r * stride + 8));
      }
      _mm256_storeu_ps(out + r * stride, lo);
      _mm256_storeu_ps(out + r * stride + 8, hi);
    } else {
      store_floats(out + r * stride, residual != nullptr ? residual + r * stride : nullptr, lo, hi, valid);
    }
  }
}

// One block of several: partial += (acc + correction) * scale.
inline void add_block(const GemmArgs& g, const Tile& t, int block, const int32_t* acc, float* partial) {
  const ptrdiff_t column = block * g.column_stride + t.column;
  const Columns scale(g.scale + column);
  const __m256i* corrections = reinterpret_cast<const __m256i*>(g.correction + column);
  const __m256i correction_lo = _mm256_loadu_si256(corrections), correction_hi = _mm256_loadu_si256(corrections + 1);
  const int rows = t.rows;
  for (int r = 0; r < rows; ++r) {
    const __m256i* sums = reinterpret_cast<const __m256i*>(acc + r * kPanel);
    float* sum = partial + r * kPanel;
    const __m256 lo = _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_load_si256(sums), correction_lo));
    const __m256 hi = _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_load_si256(sums + 1), correction_hi));
    _mm256_store_ps(sum, _mm256_fmadd_ps(lo, scale.lo, _mm256_load_ps(sum)));
    _mm256_store_ps(sum + 8, _mm256_fmadd_ps(hi, scale.hi, _mm256_load_ps(sum + 8)));
  }
}

// Rare (unsigned keys or values): b_shift times the sum of each row. May wrap, as in kernels_scalar.cc.
inline void add_shift(const GemmArgs& g, const Tile& t, int32_t* acc) {
  for (int r = 0; r < t.rows; ++r) {
    const uint8_t* a = g.a + (t.row + r) * g.a_stride;
    int32_t sum = 0;
    for (int k = 0; k < g.block_width; ++k) sum += a[k];
    const __m256i shift = _mm256_set1_epi32(sum * g.b_shift);
    for (int c = 0; c < kPanel; c += 8) {
      __m256i* at = reinterpret_cast<__m256i*>(acc + r * kPanel + c);
      _mm256_store_si256(at, _mm256_add_epi32(_mm256_load_si256(at), shift));
    }
  }
}

// Widening after every single quad (8 x 7 bits) costs more than 16-bit products do: measured 70 against 78 GMAC/s.
constexpr int kShortRun = 1;

inline void tile_sums(const GemmArgs& g, const Tile& t, const int8_t* b, int run, int block, int quads, int32_t* acc) {
  const ptrdiff_t input = static_cast<ptrdiff_t>(block) * g.block_width;
  if (run > kShortRun) {
    narrow_tile(g.a + t.row * g.a_stride + input, g.a_stride, t.rows, b, quads, run, acc);
  } else {
    const ptrdiff_t stride = qvit::wide_stride(static_cast<ptrdiff_t>(g.blocks) * g.block_width);
    const int16_t* a = g.wide + (t.row % g.chunk_rows) * stride + input;
    wide_tile(a, stride * static_cast<ptrdiff_t>(sizeof(int16_t)), t.rows, b, quads, acc);
  }
}

template <Epilogue kEpilogue>
inline void one_tile(const GemmArgs& g, const Tile& t, const int8_t* b, const int16_t* runs, int quads) {
  alignas(32) int32_t acc[kTileRows * kPanel];
  if (g.blocks == 1) {
    tile_sums(g, t, b, runs[0], 0, quads, acc);
    if (g.b_shift != 0) add_shift(g, t, acc);
    if constexpr (qvit::is_integer(kEpilogue)) {
      if (g.integer.out.narrow != nullptr) {
        finish_integers<kEpilogue, true>(g, t.row, t.rows, t.column, t.valid, acc);
      } else {
        finish_integers<kEpilogue, false>(g, t.row, t.rows, t.column, t.valid, acc);
      }
    } else {
      finish_tile<kEpilogue, true>(g, t, acc, nullptr);
    }
    return;
  }
  if constexpr (qvit::is_integer(kEpilogue)) return;  // of one block only
  alignas(32) float partial[kTileRows * kPanel];
  const Columns bias(g.bias + t.column);
  for (int r = 0; r < kTileRows; ++r) {
    _mm256_store_ps(partial + r * kPanel, bias.lo);
    _mm256_store_ps(partial + r * kPanel + 8, bias.hi);
  }
  for (int block = 0; block < g.blocks; ++block) {
    tile_sums(g, t, b + static_cast<ptrdiff_t>(block) * quads * qvit::kQuadBytes, runs[block], block, quads, acc);
    add_block(g, t, block, acc, partial);
  }
  finish_tile<kEpilogue, false>(g, t, nullptr, partial);
}

// Widen a chunk of rows to 16 bits once, for all panels of the wide path.
inline void widen_rows(const GemmArgs& g, int row, int rows) {
  const ptrdiff_t inputs = static_cast<ptrdiff_t>(g.blocks) * g.block_width, stride = qvit::wide_stride(inputs);
  for (int r = 0; r < rows; ++r) {
    const uint8_t* from = g.a + (row + r) * g.a_stride;
    int16_t* to = g.wide + ((row + r) % g.chunk_rows) * stride;
    ptrdiff_t k = 0;
    for (; k + 16 <= inputs; k += 16) {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + k));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + k), _mm256_cvtepu8_epi16(bytes));
    }
    for (; k < inputs; ++k) to[k] = from[k];
    for (; k < inputs + qvit::kQuad; ++k) to[k] = 0;  // a last quad reaches past the row
  }
}

template <Epilogue kEpilogue>
void gemm_with(const GemmArgs& g) {
  const int quads = static_cast<int>(qvit::quads_of(g.block_width));
  const int panels = static_cast<int>(qvit::panels_of(g.columns));
  const ptrdiff_t panel_bytes = static_cast<ptrdiff_t>(g.blocks) * quads * qvit::kQuadBytes;
  bool any_wide = false;
  for (int i = 0; i < panels * g.blocks; ++i) any_wide |= g.runs[i] <= kShortRun;
  for (int chunk = 0; chunk < g.rows; chunk += g.chunk_rows) {
    const int chunk_rows = g.rows - chunk < g.chunk_rows ? g.rows - chunk : g.chunk_rows;
    if (any_wide) widen_rows(g, chunk, chunk_rows);
    for (int p = 0; p < panels; ++p) {
      const int column = p * kPanel;
      const int valid = g.columns - column < kPanel ? g.columns - column : kPanel;
      for (int row = 0; row < chunk_rows; row += kTileRows) {
        const int rows = chunk_rows - row < kTileRows ? chunk_rows - row : kTileRows;
        one_tile<kEpilogue>(g, {chunk + row, rows, column, valid}, g.b + p * panel_bytes, g.runs + p * g.blocks, quads);
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
