// Keys and values become packed operands: panels as in layout.h, with the corrections of their columns behind them.
#pragma once

#include "step.h"

namespace qvit {

struct HeadShape {
  int64_t windows, heads, tokens, keys, width;  // queries, keys: tokens x keys scores of each head
};

// Bytes of the panels of one head, and of the panels with the corrections. Keys have `width` inputs and `keys` columns,
// values the other way round.
int64_t panels_bytes(int64_t inputs, int64_t columns);
int64_t packed_bytes(int64_t inputs, int64_t columns);

// The group of a grid that has one group for all heads, or one for each.
inline int group_of(const Grid& grid, int64_t head, int64_t heads) {
  return static_cast<int>(head * grid.groups() / heads);
}

// What packing takes off each code, beyond undoing the shift of signed ones: see PackArgs.
inline int b_shift_of(const Grid& grid, int group) { return grid.is_signed ? 0 : 1 << (grid.bits[group] - 1); }

// One operand to pack: keys, or values. `from` has HeadShape.keys rows a head; the grid of the left operand of the
// product gives qmin for the corrections.
struct PackParts {
  bool values;
  const Grid *left, *grid;
  HeadPlace from;
  int to;  // storage
};

// One step for all of them: keys and values of a head are independent, so twice as many units share one barrier.
std::unique_ptr<Step> make_pack(const Kernels& kernels, const HeadShape& shape, const std::vector<PackParts>& operands);

}  // namespace qvit
