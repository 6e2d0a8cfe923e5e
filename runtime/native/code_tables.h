// Per-column tables for kernels that turn codes into codes: multipliers and shifts spread over groups, and grids to
// clip to.
//
// A grid's groups divide one axis. Along the last axis they are told apart by column, along any other by row; a table
// has a row of `width` entries for each group of rows and one row where there is only one. Steps look up the row.
#pragma once

#include <vector>

#include "kernels_integer.h"
#include "program.h"

namespace qvit {

// The group of rows that a row of a (flattened) buffer belongs to.
class RowGroups {
 public:
  RowGroups() = default;
  explicit RowGroups(const Buffer& buffer);
  int64_t count() const { return count_; }
  int64_t of(int64_t row) const { return row / rows_ % count_; }

 private:
  int64_t rows_ = 1, count_ = 1;
};

// Does no R of codes of this buffer, which are at most `largest` in size, leave [-2^30, 2^30)? Only then are results
// clipped in 32 bits, or a Requantize fused.
bool rescales_small(const Buffer& buffer, const Integers& multiplier, const Integers& shift, int64_t largest);

// R(x; multiplier, shift) for the rows of a buffer of codes. Each integer array has one entry or one per group.
class RescaleTable {
 public:
  RescaleTable() = default;
  RescaleTable(const Buffer& buffer, const Integers& multiplier, const Integers& shift);
  Rescaling row(int64_t row) const { return at(groups_.of(row)); }
  Rescaling at(int64_t group) const {
    return {multiplier_.data() + group * width_, half_.data() + group * width_, shift_.data() + group * width_};
  }

 private:
  RowGroups groups_;
  int64_t width_ = 0;  // padded to whole panels: a GEMM reads that far
  std::vector<int64_t> multiplier_, half_, shift_;
};

// The grid of a buffer of codes as bounds by column.
class ClipTable {
 public:
  ClipTable() = default;
  explicit ClipTable(const Buffer& buffer);
  Clipping row(int64_t row) const { return at(groups_.of(row)); }
  Clipping at(int64_t group) const { return {low_.data() + group * width_, high_.data() + group * width_}; }

 private:
  RowGroups groups_;
  int64_t width_ = 0;
  std::vector<int32_t> low_, high_;
};

// Group of column c (0 where groups are rows, and one table row holds one group).
int column_group(const Buffer& buffer, int64_t column);

}  // namespace qvit
