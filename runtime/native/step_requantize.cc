// Requantize, AddRequantize and IntegerTokens: R of one or two operands, clipped to the grid of the output.
#include <algorithm>
#include <cstdlib>

#include "code_row.h"
#include "step_integer.h"

namespace qvit {
namespace {

class RequantizeStep final : public Step {
 public:
  RequantizeStep(const Kernels& kernels, const RescaledOperand& left, const RescaledOperand& right, const Buffer& out,
                 int to)
      : kernels_(kernels),
        left_(*left.buffer, left.storage),
        out_(out, to),
        left_scale_(*left.buffer, *left.multiplier, *left.shift),
        clip_(out),
        width_(out.last()),
        small_(left.small()) {
    reads = {left.storage};
    if (right.buffer != nullptr) {
      right_ = CodePlace(*right.buffer, right.storage);
      right_scale_ = RescaleTable(*right.buffer, *right.multiplier, *right.shift);
      small_ = small_ && right.small();
      reads.push_back(right.storage);
    }
    writes = {to};
    units = out.rows();
    by_rows = true;
    unit_cost = static_cast<double>(width_) * 4.0;
  }

  void run(const Frame& frame, int64_t begin, int64_t end, std::byte*) const override {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t at = row * width_;
      const Rescaling right = right_.storage >= 0 ? right_scale_.row(row) : Rescaling{};
      kernels_.integer->requantize({left_.row(frame, at), right_.row(frame, at), left_scale_.row(row), right,
                                    clip_.row(row), width_, small_, out_.out(frame, at)});
    }
  }

 private:
  const Kernels& kernels_;
  CodePlace left_, right_, out_;
  RescaleTable left_scale_, right_scale_;
  ClipTable clip_;
  int64_t width_;
  bool small_;
};

bool all_small(const Integers& integers) {
  return std::all_of(integers.data.begin(), integers.data.end(), [](int32_t v) { return std::abs(v) < (1 << 30); });
}

// Positions are added as they are: R(p; 2, 1) = (2 p + 1) >> 1 = p.
class IntegerTokensStep final : public Step {
 public:
  IntegerTokensStep(const Kernels& kernels, const RescaledOperand& in, const Integers& prefix, const Integers& position,
                    const Buffer& out, int to)
      : kernels_(kernels),
        in_(*in.buffer, in.storage),
        out_(out, to),
        scale_(*in.buffer, *in.multiplier, *in.shift),
        clip_(out),
        channels_(out.last()),
        first_(prefix.shape[0]),
        prefix_(prefix.data),
        position_(position.data),
        two_(static_cast<size_t>(round_up(channels_, kPanel)), 2),
        one_(two_.size(), 1),
        small_(in.small() && all_small(prefix) && all_small(position)) {
    reads = {in.storage};
    writes = {to};
    units = out.shape[0];
    unit_cost = static_cast<double>(channels_) * 4.0;
  }

  void run(const Frame& frame, int64_t begin, int64_t end, std::byte*) const override {
    const Rescaling as_is = {two_.data(), one_.data(), one_.data()};
    for (int64_t row = begin; row < end; ++row) {
      const int64_t from = (row - first_) * channels_;
      RequantizeArgs args{};
      args.clip = clip_.row(row);
      args.count = channels_;
      args.small = small_;
      args.out = out_.out(frame, row * channels_);
      args.left_scale = as_is;
      if (row < first_) {
        args.left = {nullptr, prefix_.data() + row * channels_};
      } else {
        args.left = {nullptr, position_.data() + from};
        args.right = in_.row(frame, from);
        args.right_scale = scale_.row(row - first_);
      }
      kernels_.integer->requantize(args);
    }
  }

 private:
  const Kernels& kernels_;
  CodePlace in_, out_;
  RescaleTable scale_;
  ClipTable clip_;
  int64_t channels_, first_;
  std::vector<int32_t> prefix_, position_;
  std::vector<int64_t> two_, one_;
  bool small_;
};

}  // namespace

std::unique_ptr<Step> make_requantize(const Kernels& kernels, const RescaledOperand& left, const RescaledOperand& right,
                                      const Buffer& out, int to) {
  return std::make_unique<RequantizeStep>(kernels, left, right, out, to);
}
std::unique_ptr<Step> make_integer_tokens(const Kernels& kernels, const RescaledOperand& in, const Integers& prefix,
                                          const Integers& position, const Buffer& out, int to) {
  return std::make_unique<IntegerTokensStep>(kernels, in, prefix, position, out, to);
}

}  // namespace qvit
