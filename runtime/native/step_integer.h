// Steps of the integer-only ops that work row by row. Sizes and ranges were established by `check`.
#pragma once

#include "code_tables.h"
#include "step.h"

namespace qvit {

// The part of an operand of a (re)quantization that the step keeps: where it is, and its R.
struct RescaledOperand {
  const Buffer* buffer;
  const Integers *multiplier, *shift;
  int storage;
  int64_t largest;  // no code is larger in size

  bool small() const { return rescales_small(*buffer, *multiplier, *shift, largest); }
};

// step_requantize.cc. Without a right side (its buffer null) a Requantize, with it an AddRequantize.
std::unique_ptr<Step> make_requantize(const Kernels& kernels, const RescaledOperand& left, const RescaledOperand& right,
                                      const Buffer& out, int to);
std::unique_ptr<Step> make_integer_tokens(const Kernels& kernels, const RescaledOperand& in, const Integers& prefix,
                                          const Integers& position, const Buffer& out, int to);

// step_dequantize.cc: the borders between values and codes, and sums over tokens.
std::unique_ptr<Step> make_dequantize(const Buffer& in, int from, int to);
std::unique_ptr<Step> make_quantize_regions(const Kernels& kernels, const Buffer& out, int from, int to);
std::unique_ptr<Step> make_sum_tokens(const Buffer& in, int64_t start, int from, int to);

// step_integer_norm.cc
struct IntegerNormParts {
  const Integers *multiplier, *bias, *exponent;  // exponent may be null
  int shift, zero;
};
std::unique_ptr<Step> make_integer_layer_norm(const Kernels& kernels, const Buffer& in, const IntegerNormParts& parts,
                                              const Buffer& out, int from, int to);

// step_shift_gelu.cc. `requantized`: the output of a Requantize behind it, or null.
struct ShiftGeluParts {
  int64_t unit;
  int fraction;
  const Buffer* requantized;
  const Integers *multiplier, *shift;
};
std::unique_ptr<Step> make_shift_gelu(const Buffer& in, const ShiftGeluParts& parts, int from, int to);

// step_integer_softmax.cc
struct SoftmaxConstants {
  const Integers *bias, *mask;  // may be null
};
// Their rows for a row of (W, H, N, N) scores.
class ScoreConstants {
 public:
  ScoreConstants() = default;
  ScoreConstants(const Buffer& scores, const SoftmaxConstants& constants);
  const int32_t* bias(int64_t row) const {
    return bias_.empty() ? nullptr : bias_.data() + row % (heads_ * tokens_) * width_;
  }
  const int32_t* mask(int64_t row) const {
    return mask_.empty() ? nullptr : mask_.data() + (row / (heads_ * tokens_) * tokens_ + row % tokens_) * width_;
  }

 private:
  int64_t width_ = 0, tokens_ = 1, heads_ = 1;
  std::vector<int32_t> bias_, mask_;
};
std::unique_ptr<Step> make_shiftmax(const Kernels& kernels, const Buffer& in, const Buffer& out, int64_t unit,
                                    int fraction, const SoftmaxConstants& constants, int from, int to);
struct LogIntParts {
  int64_t ln2, linear, constant;
};
std::unique_ptr<Step> make_log_int_softmax(const Buffer& in, const Buffer& out, const LogIntParts& parts,
                                           const SoftmaxConstants& constants, int from, int to);

}  // namespace qvit
