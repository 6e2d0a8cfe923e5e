#include "step_linear_accumulate.h"

#include "code_row.h"

namespace qvit {
namespace {

class LinearAccumulateStep final : public LinearBase {
 public:
  LinearAccumulateStep(const Kernels& kernels, const LinearAccumulateParts& p)
      : LinearBase(kernels, p.operands),
        out_(p.requantized != nullptr ? *p.requantized : *p.sums, p.output),
        residual_(p.residual_storage) {
    if (p.bias != nullptr) add_bias(p.bias->data);
    writes = {p.output};
    if (p.requantized == nullptr) return;
    epilogue_ = p.residual != nullptr ? Epilogue::kAddRequantize : Epilogue::kRequantize;
    scale_ = RescaleTable(*p.sums, *p.multiplier, *p.shift);
    clip_ = ClipTable(*p.requantized);
    if (p.residual != nullptr) {
      residual_scale_ = RescaleTable(*p.residual, *p.residual_multiplier, *p.residual_shift);
      reads.push_back(residual_);
    }
  }

 private:
  // Sums wrap in between: correction and bias may leave 32 bits together, the result does not.
  void add_bias(const std::vector<int32_t>& bias) {
    for (size_t o = 0; o < bias.size(); ++o) {
      correction_[o] = static_cast<int32_t>(static_cast<uint32_t>(correction_[o]) + static_cast<uint32_t>(bias[o]));
    }
  }

  void finish(GemmArgs& g, const Frame& frame, int64_t column, int64_t at) const override {
    g.epilogue = epilogue_;
    g.integer.out = out_.out(frame, at);
    if (epilogue_ == Epilogue::kSums) return;
    g.integer.scale = scale_.at(0).from(column);
    g.integer.clip = clip_.at(0).from(column);
    if (epilogue_ == Epilogue::kRequantize) return;
    g.integer.residual = frame.at<int32_t>(residual_) + at;
    g.integer.residual_scale = residual_scale_.at(0).from(column);
  }

  CodePlace out_;
  int residual_;
  Epilogue epilogue_ = Epilogue::kSums;
  RescaleTable scale_, residual_scale_;
  ClipTable clip_;
};

}  // namespace

std::unique_ptr<Step> make_linear_accumulate(const Kernels& kernels, const LinearAccumulateParts& parts) {
  return std::make_unique<LinearAccumulateStep>(kernels, parts);
}

}  // namespace qvit
