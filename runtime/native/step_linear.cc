#include "step_linear.h"

#include <algorithm>

namespace qvit {
namespace {

class LinearStep final : public LinearBase {
 public:
  LinearStep(const Kernels& kernels, const LinearParts& p)
      : LinearBase(kernels, p.operands), output_(p.output), residual_(p.residual) {
    prepare_scales(p.operands);
    prepare_epilogue(p);
    if (residual_ >= 0) reads.push_back(residual_);
    writes = {output_};
  }

 private:
  void finish(GemmArgs& g, const Frame& frame, int64_t column, int64_t at) const override {
    const bool codes_out = epilogue_ == Epilogue::kCodes || epilogue_ == Epilogue::kGeluCodes;
    g.scale = scale_.data() + column;
    g.bias = bias_.data() + column;
    g.epilogue = epilogue_;
    g.out = codes_out ? nullptr : frame.at<float>(output_) + at;
    g.residual = residual_ >= 0 ? frame.at<float>(residual_) + at : nullptr;
    g.codes = codes_out ? frame.at<uint8_t>(output_) + at : nullptr;
    g.levels = levels_.data() + column;
    g.grid_factor = grid_factor_.data() + column;
    g.grid_shift = grid_shift_.data() + column;
  }

  // Per column and block: the scale of input and weight.
  void prepare_scales(const LinearOperands& p) {
    const Weight& w = *p.weight;
    scale_.assign(blocks_ * padded(), 0.0f);
    const int64_t group_rows = w.out / w.row_groups;
    for (int block = 0; block < blocks_; ++block) {
      const double input_scale = p.input_grid->scale[input_group_of(p, block)];
      for (int64_t o = 0; o < columns_; ++o) {
        const int64_t group = (o / group_rows) * w.column_groups + column_group_of(p, block);
        scale_[block * padded() + o] = static_cast<float>(static_cast<double>(w.scale[group]) * input_scale);
      }
    }
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

  int output_, residual_;
  Epilogue epilogue_ = Epilogue::kValues;
  std::vector<float> scale_, bias_, levels_, grid_factor_, grid_shift_;
};

}  // namespace

double largest_value(const LinearParts& p) {
  const Weight& weight = *p.operands.weight;
  double scale = 0.0, bias = 0.0, factor = 1.0;
  for (float s : weight.scale) scale = std::max(scale, static_cast<double>(s));
  for (float b : *p.bias) bias = std::max(bias, std::fabs(static_cast<double>(b)));
  if (p.factor != nullptr) {
    factor = 0.0;
    for (float f : *p.factor) factor = std::max(factor, std::fabs(static_cast<double>(f)));
  }
  const std::vector<float>& scales = p.operands.input_grid->scale;
  const double input = *std::max_element(scales.begin(), scales.end());
  return (static_cast<double>(weight.in) * p.operands.copies * kLargestProduct * scale * input + bias) * factor;
}

std::unique_ptr<Step> make_linear(const Kernels& kernels, const LinearParts& parts) {
  return std::make_unique<LinearStep>(kernels, parts);
}

}  // namespace qvit
