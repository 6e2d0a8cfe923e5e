// The borders between codes and values that integer-only programs have (Dequantize, QuantizeRegions), and SumTokens.
#include "code_row.h"
#include "step_integer.h"

namespace qvit {
namespace {

// code * scale + offset in float64, rounded once.
class DequantizeStep final : public Step {
 public:
  DequantizeStep(const Buffer& in, int from, int to)
      : in_(in, from), to_(to), groups_(in), width_(in.last()), by_columns_(in.grid->axis == in.rank() - 1) {
    const Grid& grid = *in.grid;
    for (int g = 0; g < grid.groups(); ++g) {
      scale_.push_back(grid.scale[g]);
      offset_.push_back(grid.offset[g]);
      base_.push_back(in.narrow() ? grid.qmin(g) : 0);
    }
    column_ = width_ / grid.groups();
    reads = {from};
    writes = {to};
    units = in.rows();
    by_rows = true;
    unit_cost = static_cast<double>(width_) * 4.0;
  }

  void run(const Frame& frame, int64_t begin, int64_t end, std::byte*) const override {
    for (int64_t row = begin; row < end; ++row) {
      const CodeRow x = in_.row(frame, row * width_);
      float* out = frame.at<float>(to_) + row * width_;
      for (int64_t c = 0; c < width_; ++c) {
        const size_t g = static_cast<size_t>(by_columns_ ? c / column_ : groups_.of(row));
        const double code = x.narrow != nullptr ? x.narrow[c] + base_[g] : x.wide[c];
        out[c] = static_cast<float>(code * scale_[g] + offset_[g]);
      }
    }
  }

 private:
  CodePlace in_;
  int to_;
  RowGroups groups_;
  int64_t width_, column_ = 1;
  bool by_columns_;
  std::vector<double> scale_, offset_;
  std::vector<int> base_;
};

class QuantizeRegionsStep final : public Step {
 public:
  QuantizeRegionsStep(const Kernels& kernels, const Buffer& out, int from, int to)
      : kernels_(kernels), grid_(*out.grid), from_(from), to_(to), width_(out.last() / 2) {
    reads = {from};
    writes = {to};
    units = out.rows();
    by_rows = true;
    unit_cost = static_cast<double>(width_) * 8.0;
  }

  void run(const Frame& frame, int64_t begin, int64_t end, std::byte*) const override {
    for (int64_t row = begin; row < end; ++row) {
      uint8_t* codes = frame.at<uint8_t>(to_) + row * 2 * width_;
      kernels_.integer->quantize_regions({frame.at<float>(from_) + row * width_, width_, grid_.offset[0],
                                          grid_.scale[0], grid_.scale[1], static_cast<float>(grid_.qmax(0)),
                                          static_cast<float>(grid_.qmax(1)), codes, codes + width_});
    }
  }

 private:
  const Kernels& kernels_;
  Grid grid_;
  int from_, to_;
  int64_t width_;
};

class SumTokensStep final : public Step {
 public:
  SumTokensStep(const Buffer& in, int64_t start, int from, int to)
      : in_(in, from), to_(to), rows_(in.rows()), channels_(in.last()), start_(start) {
    for (int64_t c = 0; c < channels_; ++c) {  // rows share a group here: `check` sees to it
      const int group = static_cast<int>(c * in.grid->groups() / channels_);
      base_.push_back(in.narrow() ? static_cast<uint32_t>(in.grid->qmin(group) * (rows_ - start)) : 0);
    }
    reads = {from};
    writes = {to};
  }

  void run(const Frame& frame, int64_t, int64_t, std::byte*) const override {
    uint32_t* sums = frame.at<uint32_t>(to_);  // of stored codes they may wrap, with the base they do not
    for (int64_t c = 0; c < channels_; ++c) sums[c] = base_[static_cast<size_t>(c)];
    for (int64_t row = start_; row < rows_; ++row) {
      const CodeRow x = in_.row(frame, row * channels_);
      if (x.narrow != nullptr) {
        for (int64_t c = 0; c < channels_; ++c) sums[c] += x.narrow[c];
      } else {
        for (int64_t c = 0; c < channels_; ++c) sums[c] += static_cast<uint32_t>(x.wide[c]);
      }
    }
  }

 private:
  CodePlace in_;
  int to_;
  int64_t rows_, channels_, start_;
  std::vector<uint32_t> base_;
};

}  // namespace

std::unique_ptr<Step> make_dequantize(const Buffer& in, int from, int to) {
  return std::make_unique<DequantizeStep>(in, from, to);
}
std::unique_ptr<Step> make_quantize_regions(const Kernels& kernels, const Buffer& out, int from, int to) {
  return std::make_unique<QuantizeRegionsStep>(kernels, out, from, to);
}
std::unique_ptr<Step> make_sum_tokens(const Buffer& in, int64_t start, int from, int to) {
  return std::make_unique<SumTokensStep>(in, start, from, to);
}

}  // namespace qvit
