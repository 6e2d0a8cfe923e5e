#include "step_linear.h"

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

class LinearStep final : public Step {
 public:
  LinearStep(const Kernels& kernels, const LinearParts& p)
      : kernels_(kernels),
        input_(p.input),
        output_(p.output),
        residual_(p.residual),
        rows_(p.rows),
        inputs_(p.weight->in),
        columns_(p.weight->out) {
    blocks_ = std::max(p.weight->column_groups, p.input_grid->groups());
    width_ = inputs_ / blocks_;
    panel_bytes_ = blocks_ * quads_of(width_) * kQuadBytes;
    packed_ = pack_weight(*p.weight, blocks_);
    prepare_sums(*p.weight, *p.input_grid);
    prepare_epilogue(p);

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
    if (residual_ >= 0) reads.push_back(residual_);
    writes = {output_};
  }

  // A few rows of many: their columns are divided, as if there had never been more rows.
  std::vector<RowRange> narrow(RowRange rows) override {
    if (rows == kAllRows) return std::vector<RowRange>(reads.size(), kAllRows);
    if (by_rows && rows.end - rows.begin >= kFewRows) return Step::narrow(rows);
    divide_columns(rows);
    return std::vector<RowRange>(reads.size(), rows);
  }

  void run(const Frame& frame, int64_t begin, int64_t end, std::byte* scratch) const override {
    const bool codes_out = epilogue_ == Epilogue::kCodes || epilogue_ == Epilogue::kGeluCodes;
    const int64_t row = by_rows ? begin : all_.begin, rows = (by_rows ? end : all_.end) - row;
    const int64_t panel = by_rows ? 0 : begin, column = panel * kPanel;
    const int64_t columns = by_rows ? columns_ : std::min(columns_, end * kPanel) - column;
    const int64_t at = row * columns_ + column;
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
    g.scale = scale_.data() + column;
    g.bias = bias_.data() + column;
    g.column_stride = padded();
    g.epilogue = epilogue_;
    g.out = codes_out ? nullptr : frame.at<float>(output_) + at;
    g.residual = residual_ >= 0 ? frame.at<float>(residual_) + at : nullptr;
    g.codes = codes_out ? frame.at<uint8_t>(output_) + at : nullptr;
    g.out_stride = columns_;
    g.levels = levels_.data() + column;
    g.grid_factor = grid_factor_.data() + column;
    g.grid_shift = grid_shift_.data() + column;
    g.chunk_rows = chunk_rows_;
    g.wide = reinterpret_cast<int16_t*>(scratch);
    kernels_.gemm(g);
  }

 private:
  int64_t padded() const { return panels_of(columns_) * kPanel; }

  void divide_columns(RowRange rows) {
    all_ = rows;
    by_rows = false;
    first = 0;
    units = panels_of(columns_);
    grain = 4;
    unit_cost = static_cast<double>(inputs_ * (rows.end - rows.begin) * kPanel);
  }

  // Per column and block: correction, scale (of input and weight), and the run length of each panel.
  void prepare_sums(const Weight& w, const Grid& grid) {
    correction_.assign(blocks_ * padded(), 0);
    scale_.assign(blocks_ * padded(), 0.0f);
    runs_.assign(blocks_ * panels_of(columns_), INT16_MAX);
    const int64_t group_rows = w.out / w.row_groups;
    for (int block = 0; block < blocks_; ++block) {
      const int input_group = static_cast<int>(int64_t{block} * grid.groups() / blocks_);
      const int column_group = static_cast<int>(int64_t{block} * w.column_groups / blocks_);
      for (int64_t o = 0; o < columns_; ++o) {
        const int64_t group = (o / group_rows) * w.column_groups + column_group;
        const int8_t* codes = w.codes.data() + o * inputs_ + block * width_;
        int32_t sum = 0;
        for (int64_t k = 0; k < width_; ++k) sum += codes[k];
        correction_[block * padded() + o] = grid.qmin(input_group) * sum;
        scale_[block * padded() + o] =
            static_cast<float>(static_cast<double>(w.scale[group]) * grid.scale[input_group]);
        int16_t& run = runs_[(o / kPanel) * blocks_ + block];
        run = std::min<int16_t>(run, static_cast<int16_t>(run_length(grid.bits[input_group], w.bits[group])));
      }
    }
    any_wide_ = *std::min_element(runs_.begin(), runs_.end()) <= 1;
  }

  // Whatever is linear in the result is folded into scale and bias, once, in float64.
  void prepare_epilogue(const LinearParts& p) {
    bias_.assign(padded(), 0.0f);
    levels_.assign(padded(), 0.0f);
    grid_factor_.assign(padded(), 0.0f);
    grid_shift_.assign(padded(), 0.0f);
    if (p.grid != nullptr) {
      levels_ = p.grid->levels;
      epilogue_ = p.gelu ? Epilogue::kGeluCodes : Epilogue::kCodes;
    } else {
      epilogue_ = p.gelu ? Epilogue::kGelu : (p.residual >= 0 ? Epilogue::kAdd : Epilogue::kValues);
    }
    for (int64_t o = 0; o < columns_; ++o) {
      double factor = 1.0, shift = 0.0;
      if (p.factor != nullptr) factor = (*p.factor)[p.factor->size() == 1 ? 0 : o];
      if (p.grid != nullptr && !p.gelu) {
        factor *= p.grid->factor[o];
        shift = p.grid->shift[o];
      }
      bias_[o] = static_cast<float>((*p.bias)[o] * factor + shift);
      for (int block = 0; block < blocks_; ++block) {
        float& scale = scale_[block * padded() + o];
        scale = static_cast<float>(scale * factor);
      }
      if (p.grid != nullptr && p.gelu) {
        grid_factor_[o] = p.grid->factor[o];
        grid_shift_[o] = p.grid->shift[o];
      }
    }
  }

  const Kernels& kernels_;
  int input_, output_, residual_;
  int64_t rows_, inputs_, columns_, width_ = 0, panel_bytes_ = 0;
  int blocks_ = 1, chunk_rows_ = kChunkRows;
  bool any_wide_ = false;
  RowRange all_ = kAllRows;  // the rows of every task when columns are divided
  Epilogue epilogue_ = Epilogue::kValues;
  Aligned<int8_t> packed_;
  std::vector<int16_t> runs_;
  std::vector<int32_t> correction_;
  std::vector<float> scale_, bias_, levels_, grid_factor_, grid_shift_;
};

}  // namespace

Aligned<int8_t> pack_weight(const Weight& w, int blocks) {
  const int64_t width = w.in / blocks, quads = quads_of(width), panels = panels_of(w.out);
  Aligned<int8_t> packed(panels * blocks * quads * kQuadBytes);
  for (int64_t o = 0; o < w.out; ++o) {
    for (int64_t block = 0; block < blocks; ++block) {
      const int8_t* from = w.codes.data() + o * w.in + block * width;
      int8_t* to = packed.data() + ((o / kPanel) * blocks + block) * quads * kQuadBytes + (o % kPanel) * kQuad;
      for (int64_t k = 0; k < width; ++k) to[(k / kQuad) * kQuadBytes + k % kQuad] = from[k];
    }
  }
  return packed;
}

double largest_value(const LinearParts& p) {
  double scale = 0.0, bias = 0.0, factor = 1.0;
  for (float s : p.weight->scale) scale = std::max(scale, static_cast<double>(s));
  for (float b : *p.bias) bias = std::max(bias, std::fabs(static_cast<double>(b)));
  if (p.factor != nullptr) {
    factor = 0.0;
    for (float f : *p.factor) factor = std::max(factor, std::fabs(static_cast<double>(f)));
  }
  const double input = *std::max_element(p.input_grid->scale.begin(), p.input_grid->scale.end());
  return (static_cast<double>(p.weight->in) * kLargestProduct * scale * input + bias) * factor;
}

std::unique_ptr<Step> make_linear(const Kernels& kernels, const LinearParts& parts) {
  return std::make_unique<LinearStep>(kernels, parts);
}

}  // namespace qvit
