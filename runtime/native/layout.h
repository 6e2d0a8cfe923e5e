// How codes lie in memory, and how long 16-bit sums stay exact. Shared by every instruction set.
//
// Activations (operand A) are one byte each, row-major, *stored = code - qmin*: unsigned codes as they are, signed ones
// shifted up by 2^(b-1). The left operand of vpmaddubsw is unsigned, and the shift costs nothing at run time:
//
//     sum x w  =  sum (stored + qmin) w  =  sum stored w  +  qmin * sum w        <- `correction`, known per column
//
// Weights (operand B; keys and values too) are signed bytes in panels of 16 output columns by quads of 4 inputs:
//
//     panel 0                                      panel 1 ...
//     | quad 0                    | quad 1 ...     a panel is blocks x quads x 64 bytes
//     | c0: k0 k1 k2 k3 | c1: k0 k1 k2 k3 | ... | c15: k0 k1 k2 k3 |        64 bytes
//
// so that four neighbouring bytes of one activation row, broadcast to all lanes, meet 8 columns per 32-byte register,
// and 16 columns per 64-byte register where those exist. Inputs beyond the end of a block and columns beyond the last
// are zero: whatever A holds there (up to three bytes of the next row, which another thread may be writing) is
// multiplied by nothing. A *block* is a range of inputs with one input scale and
// one weight scale per column (the heads of `proj`); usually there is one.
//
// Run length. vpmaddubsw adds two neighbouring products into a 16-bit lane; adding up `run` of those is exact while
//
//     run * 2 * (2^a - 1) * 2^(w-1)  <=  32768         (the most negative sum is -32768; the most positive is smaller)
//
// A run of 0 means not even one pair fits (only 8 x 8 bits): kernels take their 16-bit multiplication path instead.
#pragma once

#include <cstdint>

namespace qvit {

inline constexpr int kPanel = 16;  // columns of a panel
inline constexpr int kQuad = 4;    // inputs of a quad
inline constexpr int kQuadBytes = kPanel * kQuad;
inline constexpr int kTileRows = 6;    // rows a kernel handles at once: 6 x 16 fills AVX2's sixteen registers
inline constexpr int kChunkRows = 24;  // rows that share a panel while both are in the first-level cache
inline constexpr int kSlack = 64;      // bytes a kernel may read behind the end of a code buffer

constexpr int run_length(int activation_bits, int weight_bits) {
  const int pair = ((1 << activation_bits) - 1) << weight_bits;  // 2 * (2^a - 1) * 2^(w-1)
  return 32768 / pair;
}

static_assert(run_length(8, 8) == 0, "8 x 8 bits must take the wide path");
static_assert(run_length(8, 7) == 1 && run_length(7, 8) == 1, "a + w = 15 leaves room for exactly one pair");
static_assert(run_length(4, 4) == 136, "4 x 4 bits: 544 inputs before widening");
static_assert(run_length(2, 2) == 2730, "and 2 x 2 bits practically never widens");

constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
constexpr int64_t panels_of(int64_t columns) { return (columns + kPanel - 1) / kPanel; }
constexpr int64_t quads_of(int64_t inputs) { return (inputs + kQuad - 1) / kQuad; }

}  // namespace qvit
