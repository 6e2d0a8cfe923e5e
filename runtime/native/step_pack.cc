#include "step_pack.h"

namespace qvit {
namespace {

// Units are (operand, window, head).
class PackStep final : public Step {
 public:
  PackStep(const Kernels& kernels, const HeadShape& shape, const std::vector<PackParts>& operands)
      : kernels_(kernels), shape_(shape) {
    for (const PackParts& p : operands) {
      Operand o{p.values, p.from, p.to};
      for (int64_t h = 0; h < shape.heads; ++h) {
        const int group = group_of(*p.grid, h, shape.heads);
        o.left_qmin.push_back(p.left->qmin(group_of(*p.left, h, shape.heads)));
        o.bias.push_back(1 << (p.grid->bits[group] - 1));
        o.b_shift.push_back(b_shift_of(*p.grid, group));
      }
      const int64_t inputs = p.values ? shape.keys : shape.width, columns = p.values ? shape.width : shape.keys;
      o.panels_bytes = panels_bytes(inputs, columns);
      o.head_bytes = packed_bytes(inputs, columns);
      operands_.push_back(std::move(o));
      reads.push_back(p.from.storage);
      writes.push_back(p.to);
    }
    units = static_cast<int64_t>(operands.size()) * shape.windows * shape.heads;
    unit_cost = static_cast<double>(shape.keys * shape.width) * 4.0;
  }

  void run(const Frame& frame, int64_t begin, int64_t end, std::byte*) const override {
    const int64_t heads = shape_.windows * shape_.heads;
    for (int64_t unit = begin; unit < end; ++unit) {
      const Operand& o = operands_[static_cast<size_t>(unit / heads)];
      const int64_t which = unit % heads, head = which % shape_.heads, window = which / shape_.heads;
      int8_t* packed = frame.at<int8_t>(o.to) + which * o.head_bytes;
      const PackArgs args = {frame.at<uint8_t>(o.from.storage) + o.from.at(window, head, 0),
                             o.from.row_stride,
                             static_cast<int>(shape_.keys),
                             static_cast<int>(shape_.width),
                             o.bias[head],
                             o.b_shift[head],
                             packed,
                             reinterpret_cast<int32_t*>(packed + o.panels_bytes),
                             o.left_qmin[head]};
      o.values ? kernels_.pack_values(args) : kernels_.pack_keys(args);
    }
  }

 private:
  struct Operand {
    bool values;
    HeadPlace from;
    int to;
    std::vector<int> left_qmin{}, bias{}, b_shift{};  // by head
    int64_t panels_bytes = 0, head_bytes = 0;
  };

  const Kernels& kernels_;
  HeadShape shape_;
  std::vector<Operand> operands_;
};

}  // namespace

int64_t panels_bytes(int64_t inputs, int64_t columns) { return panels_of(columns) * quads_of(inputs) * kQuadBytes; }

int64_t packed_bytes(int64_t inputs, int64_t columns) {
  return panels_bytes(inputs, columns) + round_up(panels_of(columns) * kPanel * 4, 64);
}

std::unique_ptr<Step> make_pack(const Kernels& kernels, const HeadShape& shape,
                                const std::vector<PackParts>& operands) {
  return std::make_unique<PackStep>(kernels, shape, operands);
}

}  // namespace qvit
