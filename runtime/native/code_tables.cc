#include "code_tables.h"

#include <algorithm>

#include "integer_math.h"
#include "layout.h"

namespace qvit {
namespace {

bool by_columns(const Buffer& b) { return b.grid->axis == b.rank() - 1; }

// Entry (group of rows, column) of a table of `buffer`: the group of its grid.
int group_at(const Buffer& b, int64_t row_group, int64_t column) {
  return by_columns(b) ? column_group(b, column) : static_cast<int>(row_group);
}

int64_t padded_width(const Buffer& b) { return round_up(b.last(), kPanel); }

// Integers have one entry, or one per group.
int64_t entry(const Integers& integers, int group) {
  return integers.data[integers.data.size() == 1 ? 0 : static_cast<size_t>(group)];
}

}  // namespace

int column_group(const Buffer& b, int64_t column) {
  if (!by_columns(b)) return 0;
  const int64_t inside = column < b.last() ? column : b.last() - 1;
  return static_cast<int>(inside * b.grid->groups() / b.last());
}

RowGroups::RowGroups(const Buffer& b) {
  if (by_columns(b)) return;
  count_ = b.grid->groups();
  rows_ = b.shape[b.grid->axis] / count_;
  for (int axis = b.grid->axis + 1; axis < b.rank() - 1; ++axis) rows_ *= b.shape[axis];
}

bool rescales_small(const Buffer& buffer, const Integers& multiplier, const Integers& shift, int64_t largest) {
  constexpr int64_t kSmall = int64_t{1} << 30;
  for (int group = 0; group < buffer.grid->groups(); ++group) {
    const int64_t m = entry(multiplier, group), e = entry(shift, group), half = int64_t{1} << (e - 1);
    const int64_t low = buffer.grid->qmin(group), high = buffer.grid->qmax(group);
    for (int64_t x : {std::max(low, -largest), std::min(high, largest)}) {
      const int64_t result = rescale(x, m, half, e);
      if (result < -kSmall || result >= kSmall) return false;
    }
  }
  return true;
}

RescaleTable::RescaleTable(const Buffer& buffer, const Integers& multiplier, const Integers& shift)
    : groups_(buffer), width_(padded_width(buffer)) {
  for (int64_t g = 0; g < groups_.count(); ++g) {
    for (int64_t c = 0; c < width_; ++c) {
      const int group = group_at(buffer, g, c);
      const int64_t m = entry(multiplier, group), e = entry(shift, group);
      multiplier_.push_back(m);
      shift_.push_back(e);
      half_.push_back((int64_t{1} << (e - 1)) + (buffer.narrow() ? buffer.grid->qmin(group) * m : 0));
    }
  }
}

ClipTable::ClipTable(const Buffer& buffer) : groups_(buffer), width_(padded_width(buffer)) {
  for (int64_t g = 0; g < groups_.count(); ++g) {
    for (int64_t c = 0; c < width_; ++c) {
      const int group = group_at(buffer, g, c);
      low_.push_back(buffer.grid->qmin(group));
      high_.push_back(buffer.grid->qmax(group));
    }
  }
}

}  // namespace qvit
