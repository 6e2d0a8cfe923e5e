// A step: one or several fused ops, as a loop over independent units (rows of tokens, heads, panels of columns).
//
// Steps are built once by the planner and then only read, so that any number of threads may run them at the same time
// on different frames. A frame is where the buffers of one image are: a table of pointers, one for each storage.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "kernels.h"
#include "layout.h"
#include "program.h"

namespace qvit {

// A fixed number of zero-initialised Ts, aligned to a cache line.
template <typename T>
class Aligned {
 public:
  Aligned() = default;
  explicit Aligned(int64_t count) : count_(count) {
    const size_t bytes = static_cast<size_t>(round_up(count * static_cast<int64_t>(sizeof(T)) + 1, 64));
    data_.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
    if (!data_) throw std::bad_alloc();
    std::fill_n(reinterpret_cast<std::byte*>(data_.get()), bytes, std::byte{0});
  }
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  T& operator[](int64_t i) { return data_.get()[i]; }
  const T& operator[](int64_t i) const { return data_.get()[i]; }
  int64_t size() const { return count_; }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t count_ = 0;
};

struct Frame {
  std::byte* const* storages;

  template <typename T>
  T* at(int storage) const {
    return reinterpret_cast<T*>(storages[storage]);
  }
};

// Rows [begin, end) of a storage.
struct RowRange {
  int64_t begin, end;
  bool operator==(const RowRange&) const = default;
};
inline constexpr RowRange kAllRows = {0, -1};
inline constexpr RowRange kNoRows = {0, 0};

class Step {
 public:
  virtual ~Step() = default;
  // Units [begin, end). `scratch` has scratch_bytes and belongs to the calling thread.
  virtual void run(const Frame& frame, int64_t begin, int64_t end, std::byte* scratch) const = 0;

  // Called once, before planning ends, from the last step to the first: only `rows` of what the step writes are read by
  // anyone (kAllRows: unknown, all). A step that can do less for it changes `first` and `units`. Returns the rows of
  // each of `reads` that it needs.
  virtual std::vector<RowRange> narrow(RowRange rows) {
    if (!by_rows || rows == kAllRows) return std::vector<RowRange>(reads.size(), kAllRows);
    first = rows.begin;
    units = rows.end - rows.begin;
    return std::vector<RowRange>(reads.size(), rows);
  }

  std::string name;      // for the profile: "Linear+Gelu+Quantize"
  std::vector<int> ops;  // the ops of the program it stands for
  int64_t units = 1;
  int64_t first = 0;       // units [first, first + units) are run: those before and behind are never read
  int64_t grain = 1;       // units are handed out in multiples of this
  bool by_rows = false;    // unit u reads and writes row u of its buffers and nothing else that this step's phase makes
  double unit_cost = 1.0;  // rough, in multiply-adds: decides how many units make a task
  int64_t weight_bytes = 0;  // read by every task: with more of them than a cache holds, tasks had better be few
  size_t scratch_bytes = 0;
  std::vector<int> reads, writes;  // storages
};

// The grid of a tensor whose last axis has `columns`, one entry per column, padded to whole panels. Codes are
// stored = clip(rint(value * factor + shift), 0, levels): the shift takes the offset and qmin along.
struct ColumnGrid {
  std::vector<float> factor, shift, levels;

  explicit ColumnGrid(int64_t columns)
      : factor(round_up(columns, kPanel)), shift(factor.size()), levels(factor.size()) {}
  void fill(int64_t column, const Grid& grid, int group) {
    const double step = grid.scale[group];
    factor[column] = static_cast<float>(1.0 / step);
    shift[column] = static_cast<float>(-static_cast<double>(grid.offset[group]) / step - grid.qmin(group));
    levels[column] = static_cast<float>(grid.levels(group));
  }
  // Do steps of values up to `largest` fit 32-bit integers? Kernels convert before they clip.
  bool fits(double largest) const {
    for (size_t c = 0; c < factor.size(); ++c) {
      if (largest * factor[c] + std::fabs(shift[c]) > 2e9) return false;
    }
    return true;
  }
};

// Products of bytes are at most this.
inline constexpr double kLargestProduct = 255.0 * 128.0;

// Where the rows of (windows, heads, tokens, width) lie: q, k and v are columns of the qkv Linear's output, and the
// result goes to the columns of the merged heads, so SplitHeads and MergeHeads move nothing.
struct HeadPlace {
  int storage = -1;
  int64_t offset = 0, window_stride = 0, head_stride = 0, row_stride = 0;  // in elements

  int64_t at(int64_t window, int64_t head, int64_t row) const {
    return offset + window * window_stride + head * head_stride + row * row_stride;
  }
};

}  // namespace qvit
