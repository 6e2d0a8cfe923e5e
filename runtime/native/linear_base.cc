#include "linear_base.h"

#include <algorithm>

namespace qvit {
namespace {

// Columns, not rows, are divided among threads where there are too few rows: the classifier has one; and where weights
// are so large that reading them once for each thread takes longer than an uneven share of rows could save.
constexpr int64_t kFewRows = 12, kFewRowsOfLarge = 64;
constexpr int64_t kLarge = 512 << 10;  // bytes of weights: more than a second-level cache keeps

// Small weights stay in the second-level cache and rows go through them in chunks that fit the first; of large ones
// each panel should be read once, so it meets as many rows as the second level holds.
int choose_chunk_rows(int64_t weight_bytes, int64_t inputs) {
  if (weight_bytes <= kLarge / 2) return kChunkRows;
  return static_cast<int>(std::max<int64_t>(kChunkRows, (kLarge / 2) / inputs / kTileRows * kTileRows));
}

// Weights in the panel layout of layout.h, each panel `copies` times.
Aligned<int8_t> pack_weight(const Weight& w, int blocks, int copies) {
  const int64_t width = w.in / blocks, quads = quads_of(width), panels = panels_of(w.out);
  Aligned<int8_t> packed(panels * copies * blocks * quads * kQuadBytes);
  for (int64_t o = 0; o < w.out; ++o) {
    for (int64_t block = 0; block < copies * blocks; ++block) {
      const int8_t* from = w.codes.data() + o * w.in + block % blocks * width;
      int8_t* to = packed.data() + ((o / kPanel) * copies * blocks + block) * quads * kQuadBytes + (o % kPanel) * kQuad;
      for (int64_t k = 0; k < width; ++k) to[(k / kQuad) * kQuadBytes + k % kQuad] = from[k];
    }
  }
  return packed;
}

}  // namespace

int blocks_of(const LinearOperands& p) {
  return p.copies > 1 ? p.weight->column_groups : std::max(p.weight->column_groups, p.input_grid->groups());
}
int input_group_of(const LinearOperands& p, int block) {
  return static_cast<int>(int64_t{block} * p.input_grid->groups() / (blocks_of(p) * p.copies));
}
int column_group_of(const LinearOperands& p, int block) {
  const int blocks = blocks_of(p);
  return static_cast<int>(int64_t{block % blocks} * p.weight->column_groups / blocks);
}

LinearBase::LinearBase(const Kernels& kernels, const LinearOperands& p)
    : kernels_(kernels),
      input_(p.input),
      rows_(p.rows),
      inputs_(p.weight->in * p.copies),
      columns_(p.weight->out),
      blocks_(blocks_of(p) * p.copies),
      width_(inputs_ / blocks_),
      panel_bytes_(blocks_ * quads_of(width_) * kQuadBytes),
      packed_(pack_weight(*p.weight, blocks_of(p), p.copies)) {
  prepare_sums(p);
  weight_bytes = packed_.size();
  chunk_rows_ = choose_chunk_rows(weight_bytes, inputs_);
  const bool row_mode = rows_ >= (weight_bytes > kLarge ? kFewRowsOfLarge : kFewRows);
  if (row_mode) {
    by_rows = true;
    units = rows_;
    grain = kTileRows;
    unit_cost = static_cast<double>(inputs_) * static_cast<double>(columns_);
  } else {
    divide_columns({0, rows_});
  }
  if (any_wide_) scratch_bytes = sizeof(int16_t) * chunk_rows_ * wide_stride(inputs_);
  reads = {input_};
}

std::vector<RowRange> LinearBase::narrow(RowRange rows) {
  if (rows == kAllRows) return std::vector<RowRange>(reads.size(), kAllRows);
  if (by_rows && rows.end - rows.begin >= kFewRows) return Step::narrow(rows);
  divide_columns(rows);
  return std::vector<RowRange>(reads.size(), rows);
}

void LinearBase::run(const Frame& frame, int64_t begin, int64_t end, std::byte* scratch) const {
  const int64_t row = by_rows ? begin : all_.begin, rows = (by_rows ? end : all_.end) - row;
  const int64_t panel = by_rows ? 0 : begin, column = panel * kPanel;
  const int64_t columns = by_rows ? columns_ : std::min(columns_, end * kPanel) - column;
  GemmArgs g{};
  g.a = frame.at<uint8_t>(input_) + row * inputs_;
  g.a_stride = inputs_;
  g.rows = static_cast<int>(rows);
  g.b = packed_.data() + panel * panel_bytes_;
  g.columns = static_cast<int>(columns);
  g.blocks = blocks_;
  g.block_width = static_cast<int>(width_);
  g.runs = runs_.data() + panel * blocks_;
  g.correction = correction_.data() + column;
  g.column_stride = padded();
  g.out_stride = columns_;
  g.chunk_rows = chunk_rows_;
  g.wide = reinterpret_cast<int16_t*>(scratch);
  finish(g, frame, column, row * columns_ + column);
  kernels_.gemm(g);
}

void LinearBase::divide_columns(RowRange rows) {
  all_ = rows;
  by_rows = false;
  first = 0;
  units = panels_of(columns_);
  grain = 4;
  unit_cost = static_cast<double>(inputs_ * (rows.end - rows.begin) * kPanel);
}

// Per column and block: the correction; per panel and block: the run length.
void LinearBase::prepare_sums(const LinearOperands& p) {
  const Weight& w = *p.weight;
  const Grid& grid = *p.input_grid;
  correction_.assign(blocks_ * padded(), 0);
  runs_.assign(blocks_ * panels_of(columns_), INT16_MAX);
  const int64_t group_rows = w.out / w.row_groups;
  for (int block = 0; block < blocks_; ++block) {
    const int input_group = input_group_of(p, block), first = block % blocks_of(p);
    for (int64_t o = 0; o < columns_; ++o) {
      const int64_t group = (o / group_rows) * w.column_groups + column_group_of(p, block);
      const int8_t* codes = w.codes.data() + o * w.in + first * width_;
      int32_t sum = 0;
      for (int64_t k = 0; k < width_; ++k) sum += codes[k];
      correction_[block * padded() + o] = grid.qmin(input_group) * sum;
      int16_t& run = runs_[(o / kPanel) * blocks_ + block];
      run = std::min<int16_t>(run, static_cast<int16_t>(run_length(grid.bits[input_group], w.bits[group])));
    }
  }
  any_wide_ = *std::min_element(runs_.begin(), runs_.end()) <= 1;
}

}  // namespace qvit
