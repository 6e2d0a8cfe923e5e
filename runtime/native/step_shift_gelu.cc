// ShiftGelu by table: what becomes of a code depends on that code alone, so all of it, the Requantize behind it
// included, is 256 entries made at load.
#include <algorithm>

#include "code_row.h"
#include "integer_math.h"
#include "step_integer.h"

namespace qvit {
namespace {

// x sigmoid(1.702 x), times 256.
int64_t shift_gelu(int64_t x, int64_t unit, int fraction) {
  const int64_t pivot = std::max<int64_t>(x, 0);
  const int64_t e1 = shift_exp(x - pivot, unit, fraction), e2 = shift_exp(-pivot, unit, fraction);
  return x * ((e1 * (kOne31 / (e1 + e2))) >> 23);
}

// Entry: a byte when a Requantize to narrow codes is fused, else the 32-bit code.
template <typename Entry>
class ShiftGeluStep final : public Step {
 public:
  ShiftGeluStep(const Buffer& in, const ShiftGeluParts& p, int from, int to) : from_(from), to_(to), width_(in.last()) {
    for (int stored = 0; stored < 256; ++stored) {
      const int x = std::min(stored, in.grid->levels(0)) + in.grid->qmin(0);
      table_.push_back(entry(p, shift_gelu(x, p.unit, p.fraction)));
    }
    reads = {from};
    writes = {to};
    units = in.rows();
    by_rows = true;
    unit_cost = static_cast<double>(width_) * 4.0;
  }

  void run(const Frame& frame, int64_t begin, int64_t end, std::byte*) const override {
    const uint8_t* x = frame.at<uint8_t>(from_);
    Entry* out = frame.at<Entry>(to_);
    for (int64_t i = begin * width_; i < end * width_; ++i) out[i] = table_[x[i]];
  }

 private:
  static Entry entry(const ShiftGeluParts& p, int64_t code) {
    if (p.requantized == nullptr) return static_cast<Entry>(code);
    const Grid& grid = *p.requantized->grid;
    const int64_t e = p.shift->data[0];
    const int64_t scaled = rescale(code, p.multiplier->data[0], int64_t{1} << (e - 1), e);
    return static_cast<Entry>(clip(scaled, grid.qmin(0), grid.qmax(0)) - grid.qmin(0));
  }

  int from_, to_;
  int64_t width_;
  std::vector<Entry> table_;
};

}  // namespace

std::unique_ptr<Step> make_shift_gelu(const Buffer& in, const ShiftGeluParts& parts, int from, int to) {
  if (parts.requantized != nullptr) return std::make_unique<ShiftGeluStep<uint8_t>>(in, parts, from, to);
  return std::make_unique<ShiftGeluStep<int32_t>>(in, parts, from, to);
}

}  // namespace qvit
