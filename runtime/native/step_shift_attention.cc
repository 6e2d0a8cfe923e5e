// ShiftAttentionValue on the integer GEMM. Shifting a value by s and adding up is a product with 2^s; of a power of two
// up to 2^14 (4-bit codes) or 2^20 one byte is not zero, so the map becomes two or three planes of bytes, and
//
//   acc = sum over planes p of 256^p (plane_p times values)
//
// is exact: each plane's sums fit 32 bits, and so does the whole where `small_` says so.
#include <algorithm>

#include "code_tables.h"
#include "head_step.h"
#include "integer_math.h"
#include "step_attention.h"
#include "step_integer_attention.h"

namespace qvit {
namespace {

class ShiftAttentionValueStep final : public HeadStep {
 public:
  ShiftAttentionValueStep(const Kernels& kernels, const HeadShape& shape, const Buffer& attention, const Buffer& value,
                          int from, int values, int to)
      : HeadStep(shape),
        kernels_(kernels),
        attention_(dense_heads(from, shape.heads, shape.tokens, shape.keys)),
        output_(dense_heads(to, shape.heads, shape.tokens, shape.width)),
        values_(values),
        product_(shape.heads, shape.keys, shape.width, power_grid(), *value.grid),
        row_(round_up(shape.keys, kPanel)),
        columns_(round_up(shape.width, kPanel)) {
    const int fraction = shift_fraction(attention.grid->bits[0]);
    planes_.assign(static_cast<size_t>(fraction / 8 + 1), std::vector<uint8_t>(256, 0));
    for (int code = 0; code <= fraction; ++code) {
      const int s = fraction - code;
      planes_[static_cast<size_t>(s / 8)][static_cast<size_t>(code)] = static_cast<uint8_t>(1 << s % 8);
    }
    int64_t largest = 0;
    for (int64_t h = 0; h < shape.heads; ++h) {
      const int group = group_of(*value.grid, h, shape.heads);
      scale_.push_back(std::ldexp(static_cast<double>(value.grid->scale[group]), -fraction));
      largest = std::max<int64_t>(largest, std::max(-value.grid->qmin(group), value.grid->qmax(group)));
    }
    small_ = (shape.keys * largest << fraction) <= kOne31;
    unit_cost *= static_cast<double>(planes_.size());
    sums_at_ = static_cast<size_t>(round_up(kTileRows * row_ + kSlack, 64));
    wide_at_ = sums_at_ + planes_.size() * static_cast<size_t>(kTileRows * columns_) * sizeof(int32_t);
    scratch_bytes = wide_at_ + product_.scratch_bytes();
    reads = {from, values};
    writes = {to};
  }

  void run(const Frame& frame, int64_t begin, int64_t end, std::byte* scratch) const override {
    const int32_t* sums = reinterpret_cast<const int32_t*>(scratch + sums_at_);
    for (int64_t unit = begin; unit < end; ++unit) {
      const Rows r = rows_of(unit);
      const int8_t* values = frame.at<int8_t>(values_) + packed_at(r, product_.head_bytes());
      for (int64_t row = r.begin; row < r.end; row += kTileRows) {
        const int64_t rows = std::min<int64_t>(kTileRows, r.end - row);
        const uint8_t* codes = frame.at<uint8_t>(attention_.storage) + attention_.at(r.window, r.head, row);
        multiply(codes, r.head, rows, values, scratch);
        float* out = frame.at<float>(output_.storage) + output_.at(r.window, r.head, row);
        for (int64_t i = 0; i < rows; ++i) {
          small_ ? add_planes<int32_t>(sums + i * columns_, scale_[r.head], out + i * shape_.width)
                 : add_planes<int64_t>(sums + i * columns_, scale_[r.head], out + i * shape_.width);
        }
      }
    }
  }

 private:
  // The sums of all planes for some rows of codes.
  void multiply(const uint8_t* codes, int64_t head, int64_t rows, const int8_t* values, std::byte* scratch) const {
    uint8_t* powers = reinterpret_cast<uint8_t*>(scratch);
    int32_t* sums = reinterpret_cast<int32_t*>(scratch + sums_at_);
    for (const std::vector<uint8_t>& plane : planes_) {
      for (int64_t i = 0; i < rows; ++i) {
        const uint8_t* from = codes + i * shape_.keys;
        for (int64_t k = 0; k < shape_.keys; ++k) powers[i * row_ + k] = plane[from[k]];
      }
      GemmArgs g = product_.args(head, powers, row_, rows, values, scratch + wide_at_);
      g.epilogue = Epilogue::kSums;
      g.integer.out = {nullptr, sums};
      g.out_stride = columns_;
      kernels_.gemm(g);
      sums += kTileRows * columns_;
    }
  }

  template <typename Sum>
  void add_planes(const int32_t* sums, double scale, float* out) const {
    for (int64_t c = 0; c < shape_.width; ++c) {
      Sum total = 0;
      for (size_t p = planes_.size(); p-- > 0;) {
        total = total * 256 + sums[static_cast<int64_t>(p) * kTileRows * columns_ + c];
      }
      out[c] = static_cast<float>(static_cast<double>(total) * scale);
    }
  }

  const Kernels& kernels_;
  HeadPlace attention_, output_;
  int values_;
  HeadProduct product_;
  int64_t row_, columns_;
  std::vector<std::vector<uint8_t>> planes_;  // byte by code
  std::vector<double> scale_;
  bool small_ = false;
  size_t sums_at_ = 0, wide_at_ = 0;
};

}  // namespace

const Grid& power_grid() {
  static const Grid grid = {{8}, false, {1.0f}, {0.0f}, 0};
  return grid;
}

std::unique_ptr<Step> make_shift_attention_value(const Kernels& kernels, const HeadShape& shape,
                                                 const Buffer& attention, const Buffer& value, int from, int values,
                                                 int to) {
  return std::make_unique<ShiftAttentionValueStep>(kernels, shape, attention, value, from, values, to);
}

}  // namespace qvit
