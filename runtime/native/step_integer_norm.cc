// IntegerLayerNorm: rows through the kernel, with what it may assume about their size settled at load.
#include <algorithm>
#include <cstdlib>

#include "code_row.h"
#include "step_integer.h"

namespace qvit {
namespace {

class IntegerNormStep final : public Step {
 public:
  IntegerNormStep(const Kernels& kernels, const Buffer& in, const IntegerNormParts& p, const Buffer& out, int from,
                  int to)
      : kernels_(kernels),
        in_(in, from),
        out_(out, to),
        clip_(out),
        width_(in.last()),
        multiplier_(p.multiplier->data),
        bias_(p.bias->data),
        shift_(p.shift) {
    if (p.exponent != nullptr) exponent_ = p.exponent->data;
    int64_t largest = 0, multiplier = 0, bias = 0;
    for (int64_t c = 0; c < width_; ++c) {
      const int group = column_group(in, c), low = in.grid->qmin(group), high = in.grid->qmax(group);
      base_.push_back((in.narrow() ? low : 0) - p.zero);
      const int64_t size = std::max(std::llabs(int64_t{low} - p.zero), std::llabs(int64_t{high} - p.zero));
      largest = std::max(largest, exponent_.empty() ? size : size << exponent_[c]);
      multiplier = std::max<int64_t>(multiplier, std::llabs(multiplier_[c]));
      bias = std::max<int64_t>(bias, std::llabs(bias_[c]));
    }
    for (auto* table : {&multiplier_, &bias_, &base_}) table->resize(static_cast<size_t>(round_up(width_, kPanel)));
    if (!exponent_.empty()) exponent_.resize(base_.size());
    const int64_t lane = (width_ / 8 + 1) * largest, result = ((multiplier << 30) >> (shift_ - 8)) + bias + 129;
    small_ = std::max(2 * largest, std::max(lane, result)) < kMax32;
    reads = {from};
    writes = {to};
    units = in.rows();
    by_rows = true;
    unit_cost = static_cast<double>(width_) * 8.0;
  }

  void run(const Frame& frame, int64_t begin, int64_t end, std::byte*) const override {
    for (int64_t row = begin; row < end; ++row) {
      kernels_.integer->layer_norm({in_.row(frame, row * width_), static_cast<int>(width_), base_.data(),
                                    exponent_.empty() ? nullptr : exponent_.data(), multiplier_.data(), bias_.data(),
                                    shift_, small_, clip_.row(row), out_.out(frame, row * width_)});
    }
  }

 private:
  static constexpr int64_t kMax32 = (int64_t{1} << 31) - 1;

  const Kernels& kernels_;
  CodePlace in_, out_;
  ClipTable clip_;
  int64_t width_;
  std::vector<int32_t> multiplier_, bias_, exponent_, base_;
  int shift_;
  bool small_ = false;
};

}  // namespace

std::unique_ptr<Step> make_integer_layer_norm(const Kernels& kernels, const Buffer& in, const IntegerNormParts& parts,
                                              const Buffer& out, int from, int to) {
  return std::make_unique<IntegerNormStep>(kernels, in, parts, out, from, to);
}

}  // namespace qvit
