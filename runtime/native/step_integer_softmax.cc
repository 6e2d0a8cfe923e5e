// Shiftmax and LogIntSoftmax as steps of their own: rows of (W, H, N, N) scores, each with its row of the constants.
#include <algorithm>

#include "code_row.h"
#include "integer_math.h"
#include "step_integer.h"

namespace qvit {

ScoreConstants::ScoreConstants(const Buffer& scores, const SoftmaxConstants& constants) {
  const int rank = scores.rank();
  width_ = scores.last();
  tokens_ = scores.shape[rank - 2];
  heads_ = scores.shape[rank - 3];
  if (constants.bias != nullptr) bias_ = constants.bias->data;
  if (constants.mask != nullptr) mask_ = constants.mask->data;
}

namespace {

class ShiftmaxStep final : public Step {
 public:
  ShiftmaxStep(const Kernels& kernels, const Buffer& in, const Buffer& out, int64_t unit, int fraction,
               const SoftmaxConstants& constants, int from, int to)
      : kernels_(kernels),
        in_(in, from),
        to_(to),
        width_(in.last()),
        constants_(in, constants),
        unit_(static_cast<int32_t>(unit)),
        fraction_(fraction),
        bits_(out.grid->bits),
        groups_(out) {
    padded_ = round_up(width_, kPanel);
    scratch_bytes = static_cast<size_t>(padded_) * (sizeof(int32_t) + 1);
    reads = {from};
    writes = {to};
    units = in.rows();
    by_rows = true;
    unit_cost = static_cast<double>(width_) * 20.0;
  }

  void run(const Frame& frame, int64_t begin, int64_t end, std::byte* scratch) const override {
    int32_t* exponentials = reinterpret_cast<int32_t*>(scratch);
    uint8_t* codes = reinterpret_cast<uint8_t*>(exponentials + padded_);
    for (int64_t row = begin; row < end; ++row) {
      const int bits = bits_[static_cast<size_t>(groups_.of(row))];
      kernels_.integer->shiftmax({in_.row(frame, row * width_), static_cast<int>(width_), constants_.bias(row),
                                  constants_.mask(row), unit_, fraction_, bits, codes, exponentials});
      std::copy_n(codes, width_, frame.at<uint8_t>(to_) + row * width_);
    }
  }

 private:
  const Kernels& kernels_;
  CodePlace in_;
  int to_;
  int64_t width_, padded_ = 0;
  ScoreConstants constants_;
  int32_t unit_;
  int fraction_;
  std::vector<int> bits_;
  RowGroups groups_;
};

class LogIntSoftmaxStep final : public Step {
 public:
  LogIntSoftmaxStep(const Buffer& in, const Buffer& out, const LogIntParts& parts, const SoftmaxConstants& constants,
                    int from, int to)
      : from_(from), to_(to), width_(in.last()), constants_(in, constants), parts_(parts), bits_(out.grid->bits[0]) {
    for (int d = 0; d < 256; ++d) table_.push_back(log_int_exp(d, parts.ln2, parts.linear, parts.constant));
    scratch_bytes = static_cast<size_t>(width_) * sizeof(int64_t);
    reads = {from};
    writes = {to};
    units = in.rows();
    by_rows = true;
    unit_cost = static_cast<double>(width_) * 20.0;
  }

  void run(const Frame& frame, int64_t begin, int64_t end, std::byte* scratch) const override {
    for (int64_t row = begin; row < end; ++row) {
      log_int_softmax({frame.at<uint8_t>(from_) + row * width_, static_cast<int>(width_), constants_.bias(row),
                       constants_.mask(row), parts_.ln2, parts_.linear, parts_.constant, table_.data(), bits_,
                       frame.at<uint8_t>(to_) + row * width_, reinterpret_cast<int64_t*>(scratch)});
    }
  }

 private:
  int from_, to_;
  int64_t width_;
  ScoreConstants constants_;
  LogIntParts parts_;
  int bits_;
  std::vector<int64_t> table_;
};

}  // namespace

std::unique_ptr<Step> make_shiftmax(const Kernels& kernels, const Buffer& in, const Buffer& out, int64_t unit,
                                    int fraction, const SoftmaxConstants& constants, int from, int to) {
  return std::make_unique<ShiftmaxStep>(kernels, in, out, unit, fraction, constants, from, to);
}
std::unique_ptr<Step> make_log_int_softmax(const Buffer& in, const Buffer& out, const LogIntParts& parts,
                                           const SoftmaxConstants& constants, int from, int to) {
  return std::make_unique<LogIntSoftmaxStep>(in, out, parts, constants, from, to);
}

}  // namespace qvit
