// What all attention steps share: one product of heads as GEMM arguments, and the division of heads and rows into
// units.
#pragma once

#include <algorithm>

#include "step.h"
#include "step_pack.h"

namespace qvit {

// A product of the codes of a head with packed keys or values, all heads: the arrays that a GemmArgs points to. The
// epilogue is the caller's.
class HeadProduct {
 public:
  HeadProduct() = default;
  HeadProduct(int64_t heads, int64_t inputs, int64_t columns, const Grid& left, const Grid& right)
      : inputs_(inputs), columns_(columns), panels_bytes_(panels_bytes(inputs, columns)) {
    for (int64_t h = 0; h < heads; ++h) {
      const int l = group_of(left, h, heads), r = group_of(right, h, heads);
      const int run = run_length(left.bits[l], right.bits[r]);
      runs_.insert(runs_.end(), panels_of(columns), static_cast<int16_t>(run));
      wide_ |= run <= 1;
      b_shift_.push_back(b_shift_of(right, r));
    }
  }

  size_t scratch_bytes() const { return wide_ ? sizeof(int16_t) * kChunkRows * wide_stride(inputs_) : 0; }
  int64_t head_bytes() const { return packed_bytes(inputs_, columns_); }

  GemmArgs args(int64_t head, const uint8_t* a, int64_t stride, int64_t rows, const int8_t* packed,
                std::byte* scratch) const {
    GemmArgs g{};
    g.a = a;
    g.a_stride = stride;
    g.rows = static_cast<int>(rows);
    g.b = packed;
    g.columns = static_cast<int>(columns_);
    g.blocks = 1;
    g.block_width = static_cast<int>(inputs_);
    g.b_shift = b_shift_[head];
    g.runs = runs_.data() + head * panels_of(columns_);
    g.correction = reinterpret_cast<const int32_t*>(packed + panels_bytes_);
    g.column_stride = panels_of(columns_) * kPanel;
    g.chunk_rows = kChunkRows;
    g.wide = reinterpret_cast<int16_t*>(scratch);
    return g;
  }

 private:
  int64_t inputs_ = 0, columns_ = 0, panels_bytes_ = 0;
  bool wide_ = false;
  std::vector<int16_t> runs_;
  std::vector<int> b_shift_;
};

// Units are (window, head, block of query rows), so that single large heads are divided among threads too.
class HeadStep : public Step {
 protected:
  static constexpr int64_t kBlockRows = 30;

  explicit HeadStep(const HeadShape& shape) : shape_(shape), tokens_(shape.tokens) {
    const int64_t wanted = (shape.tokens + kBlockRows - 1) / kBlockRows;
    block_rows_ = round_up((shape.tokens + wanted - 1) / wanted, kTileRows);
    blocks_ = (shape.tokens + block_rows_ - 1) / block_rows_;
    units = shape.windows * shape.heads * blocks_;
    unit_cost = static_cast<double>(block_rows_ * shape.keys * (shape.width + 20));
  }
  // Rows of the (windows x tokens) output become blocks of queries; with many windows, all of them are run.
  std::vector<RowRange> narrow(RowRange rows) override {
    std::vector<RowRange> needs(reads.size(), kAllRows);
    if (rows == kAllRows || shape_.windows > 1 || !rows_of_output_) return needs;
    first_row_ = rows.begin;
    tokens_ = rows.end;
    blocks_ = (rows.end - rows.begin + block_rows_ - 1) / block_rows_;
    units = shape_.heads * blocks_;
    return needs;  // queries, keys and values are columns of one storage: all of it
  }

  struct Rows {
    int64_t window, head, begin, end;
  };
  Rows rows_of(int64_t unit) const {
    const int64_t block = unit % blocks_, which = unit / blocks_;
    return {which / shape_.heads, which % shape_.heads, first_row_ + block * block_rows_,
            std::min(tokens_, first_row_ + (block + 1) * block_rows_)};
  }
  int64_t packed_at(const Rows& r, int64_t head_bytes) const { return (r.window * shape_.heads + r.head) * head_bytes; }

  HeadShape shape_;
  int64_t block_rows_, blocks_, first_row_ = 0, tokens_;
  bool rows_of_output_ = false;  // the output's rows are tokens: merged heads
};

}  // namespace qvit
