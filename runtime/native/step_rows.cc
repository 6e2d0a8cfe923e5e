#include "step_rows.h"

#include <algorithm>
#include <cstring>

namespace qvit {
namespace {

// A buffer of `rows` rows of `width`, worked on in place of the op's own shape.
class RowStep : public Step {
 protected:
  RowStep(const Buffer& shape, double cost_per_element) : rows_(shape.rows()), width_(shape.last()) {
    units = rows_;
    by_rows = true;
    unit_cost = static_cast<double>(width_) * cost_per_element;
  }
  int64_t rows_, width_;
};

// Groups along the last axis are spread over its columns; along any other axis each row lies in one group.
class QuantizeStep final : public RowStep {
 public:
  QuantizeStep(const Kernels& kernels, const Buffer& out, int from, int to)
      : RowStep(out, 4.0), kernels_(kernels), from_(from), to_(to) {
    const Grid& grid = *out.grid;
    per_column_ = grid.axis == out.rank() - 1 && grid.groups() > 1;
    const int64_t entries = per_column_ ? width_ : grid.groups();
    for (int64_t i = 0; i < entries; ++i) {
      const int g = static_cast<int>(i * grid.groups() / entries);
      scale_.push_back(grid.scale[g]);
      offset_.push_back(grid.offset[g]);
      low_.push_back(static_cast<float>(grid.qmin(g)));
      high_.push_back(static_cast<float>(grid.qmin(g) + grid.levels(g)));
    }
    if (!per_column_) {
      rows_per_group_ = out.shape[grid.axis] / grid.groups();
      if (grid.axis == out.rank() - 1) rows_per_group_ = rows_;
      for (int axis = grid.axis + 1; axis < out.rank() - 1; ++axis) rows_per_group_ *= out.shape[axis];
    }
    reads = {from};
    writes = {to};
  }

  void run(const Frame& frame, int64_t begin, int64_t end, std::byte*) const override {
    for (int64_t row = begin; row < end; ++row) {
      const size_t g =
          per_column_ ? 0 : static_cast<size_t>((row / rows_per_group_) % static_cast<int64_t>(scale_.size()));
      kernels_.quantize({frame.at<float>(from_) + row * width_, frame.at<uint8_t>(to_) + row * width_, width_,
                         scale_.data() + g, offset_.data() + g, low_.data() + g, high_.data() + g, per_column_});
    }
  }

 private:
  const Kernels& kernels_;
  int from_, to_;
  bool per_column_ = false;
  int64_t rows_per_group_ = 1;
  std::vector<float> scale_, offset_, low_, high_;
};

class LayerNormStep final : public RowStep {
 public:
  LayerNormStep(const Kernels& kernels, const Buffer& shape, const Constant& weight, const Constant& bias, double eps,
                const ColumnGrid* grid, int from, int to)
      : RowStep(shape, 8.0),
        kernels_(kernels),
        weight_(weight.data),
        bias_(bias.data),
        eps_(static_cast<float>(eps)),
        codes_(grid != nullptr),
        from_(from),
        to_(to) {
    if (codes_) {
      levels_ = grid->levels;
      for (int64_t c = 0; c < width_; ++c) {
        weight_[c] = static_cast<float>(static_cast<double>(weight_[c]) * grid->factor[c]);
        bias_[c] = static_cast<float>(static_cast<double>(bias_[c]) * grid->factor[c] + grid->shift[c]);
      }
    }
    reads = {from};
    writes = {to};
  }

  void run(const Frame& frame, int64_t begin, int64_t end, std::byte*) const override {
    kernels_.layer_norm({frame.at<float>(from_) + begin * width_, static_cast<int>(end - begin),
                         static_cast<int>(width_), weight_.data(), bias_.data(), eps_,
                         codes_ ? nullptr : frame.at<float>(to_) + begin * width_,
                         codes_ ? frame.at<uint8_t>(to_) + begin * width_ : nullptr, levels_.data()});
  }

 private:
  const Kernels& kernels_;
  std::vector<float> weight_, bias_, levels_;
  float eps_;
  bool codes_;
  int from_, to_;
};

// Rows of (W, H, N, M) scores, one at a time: each has its own row of the constants.
class SoftmaxStep final : public RowStep {
 public:
  SoftmaxStep(const Kernels& kernels, const Buffer& shape, const Constant* bias, const Constant* mask, int from, int to)
      : RowStep(shape, 20.0), kernels_(kernels), from_(from), to_(to) {
    const int rank = shape.rank();
    if (bias != nullptr) bias_ = bias->data;
    if (mask != nullptr) mask_ = mask->data;
    tokens_ = rank >= 2 ? shape.shape[rank - 2] : 1;
    heads_ = rank >= 3 ? shape.shape[rank - 3] : 1;
    padded_ = round_up(width_, kPanel);
    scratch_bytes = static_cast<size_t>(padded_) * 2 * sizeof(float);
    reads = {from};
    writes = {to};
  }

  void run(const Frame& frame, int64_t begin, int64_t end, std::byte* scratch) const override {
    float* row = reinterpret_cast<float*>(scratch);
    for (int64_t r = begin; r < end; ++r) {
      std::memcpy(row, frame.at<float>(from_) + r * width_, static_cast<size_t>(width_) * sizeof(float));
      const int64_t token = r % tokens_, head = r / tokens_ % heads_, window = r / (tokens_ * heads_);
      SoftmaxArgs s{};
      s.x = row;
      s.rows = 1;
      s.width = static_cast<int>(width_);
      s.bias = bias_.empty() ? nullptr : bias_.data() + (head * tokens_ + token) * width_;
      s.mask = mask_.empty() ? nullptr : mask_.data() + (window * tokens_ + token) * width_;
      s.out = row + padded_;
      kernels_.softmax(s);
      std::memcpy(frame.at<float>(to_) + r * width_, s.out, static_cast<size_t>(width_) * sizeof(float));
    }
  }

 private:
  const Kernels& kernels_;
  int from_, to_;
  int64_t tokens_ = 1, heads_ = 1, padded_ = 0;
  std::vector<float> bias_, mask_;
};

class GeluStep final : public RowStep {
 public:
  GeluStep(const Kernels& kernels, const Buffer& shape, int from, int to)
      : RowStep(shape, 20.0), kernels_(kernels), from_(from), to_(to) {
    reads = {from};
    writes = {to};
  }
  void run(const Frame& frame, int64_t begin, int64_t end, std::byte*) const override {
    kernels_.gelu(
        {frame.at<float>(from_) + begin * width_, frame.at<float>(to_) + begin * width_, (end - begin) * width_});
  }

 private:
  const Kernels& kernels_;
  int from_, to_;
};

class AddStep final : public RowStep {
 public:
  AddStep(const Buffer& shape, int left, int right, int to) : RowStep(shape, 1.0), left_(left), right_(right), to_(to) {
    reads = {left, right};
    writes = {to};
  }
  void run(const Frame& frame, int64_t begin, int64_t end, std::byte*) const override {
    const float *left = frame.at<float>(left_), *right = frame.at<float>(right_);
    float* out = frame.at<float>(to_);
    for (int64_t i = begin * width_; i < end * width_; ++i) out[i] = left[i] + right[i];
  }

 private:
  int left_, right_, to_;
};

class MultiplyStep final : public RowStep {
 public:
  MultiplyStep(const Buffer& shape, const Constant& factor, int from, int to)
      : RowStep(shape, 1.0), factor_(factor.data), from_(from), to_(to) {
    factor_.resize(static_cast<size_t>(width_), factor_[0]);
    reads = {from};
    writes = {to};
  }
  void run(const Frame& frame, int64_t begin, int64_t end, std::byte*) const override {
    for (int64_t row = begin; row < end; ++row) {
      const float* x = frame.at<float>(from_) + row * width_;
      float* out = frame.at<float>(to_) + row * width_;
      for (int64_t c = 0; c < width_; ++c) out[c] = x[c] * factor_[c];
    }
  }

 private:
  std::vector<float> factor_;
  int from_, to_;
};

}  // namespace

HeadGrid head_grid(const Grid& grid, int64_t head, int64_t heads) {
  ColumnGrid one(1);
  one.fill(0, grid, static_cast<int>(head * grid.groups() / heads));
  return {one.factor[0], one.shift[0], one.levels[0]};
}

std::unique_ptr<Step> make_quantize(const Kernels& kernels, const Buffer& output, int from, int to) {
  return std::make_unique<QuantizeStep>(kernels, output, from, to);
}
std::unique_ptr<Step> make_layer_norm(const Kernels& kernels, const Buffer& shape, const Constant& weight,
                                      const Constant& bias, double eps, const ColumnGrid* grid, int from, int to) {
  return std::make_unique<LayerNormStep>(kernels, shape, weight, bias, eps, grid, from, to);
}
std::unique_ptr<Step> make_softmax(const Kernels& kernels, const Buffer& shape, const Constant* bias,
                                   const Constant* mask, int from, int to) {
  return std::make_unique<SoftmaxStep>(kernels, shape, bias, mask, from, to);
}
std::unique_ptr<Step> make_gelu(const Kernels& kernels, const Buffer& shape, int from, int to) {
  return std::make_unique<GeluStep>(kernels, shape, from, to);
}
std::unique_ptr<Step> make_add(const Buffer& shape, int left, int right, int to) {
  return std::make_unique<AddStep>(shape, left, right, to);
}
std::unique_ptr<Step> make_multiply(const Buffer& shape, const Constant& factor, int from, int to) {
  return std::make_unique<MultiplyStep>(shape, factor, from, to);
}

}  // namespace qvit
