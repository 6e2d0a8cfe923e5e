// The questions that the checks of many ops ask, in one class: check_ops.cc and check_integer.cc derive from it.
#pragma once

#include <algorithm>
#include <functional>

#include "check_ops.h"

namespace qvit {

class OpCheck {
 public:
  OpCheck(const Program& program, const Op& op, std::string where)
      : program_(program), op_(op), where_(std::move(where)) {}

 protected:
  using Shape = std::vector<int64_t>;

  void require(bool condition, const char* what) const { need(condition, where_, what); }
  const Buffer& in(int i = 0) const { return program_.buffers[op_.inputs[i]]; }
  const Buffer& out() const { return program_.buffers[op_.output]; }
  void values(const Buffer& b) const { require(!b.grid, "takes or makes values where the program has codes"); }
  // Narrow codes: what a product can take.
  void codes(const Buffer& b) const {
    any_codes(b);
    require(b.narrow(), "takes or makes wide codes where only up to 8 bits will do");
  }
  void any_codes(const Buffer& b) const {
    require(b.grid.has_value(), "takes or makes codes where the program has values");
  }
  void shape(const Shape& expected) const { require(out().shape == expected, "has an output of another shape"); }
  void same_shape() const { shape(in().shape); }

  void numbers(size_t tensors, size_t integers, size_t reals) const {
    require(op_.tensors.size() == tensors && op_.integers.size() == integers && op_.reals.size() == reals,
            "has another number of parameters");
  }
  const Constant& tensor(int i) const {
    require(op_.tensors[i] >= 0 && op_.tensors[i] < static_cast<int>(program_.constants.size()),
            "names a constant that does not exist");
    return program_.constants[op_.tensors[i]];
  }
  void constant(int i, const Shape& expected) const {
    require(tensor(i).shape == expected, "has a constant of another shape");
  }
  // Codes that are only moved keep their meaning: column by column as wide, and as signed.
  void same_codes(int64_t columns, const std::function<int(int64_t)>& from,
                  const std::function<int(int64_t)>& to) const {
    any_codes(in());
    any_codes(out());
    require(in().grid->is_signed == out().grid->is_signed, "moves codes to a grid of other bits");
    for (int64_t c = 0; c < columns; ++c) {
      require(in().grid->bits[from(c)] == out().grid->bits[to(c)], "moves codes to a grid of other bits");
    }
  }
  // The group of column c where groups are along columns, `c` out of `columns`.
  static int group_of(const Buffer& b, int64_t c, int64_t columns) {
    return static_cast<int>(c * b.grid->groups() / columns);
  }
  void groups_along(const Buffer& b, int axis) const {
    require(b.grid->groups() == 1 || b.grid->axis == axis, "has groups along another axis than it can take");
  }
  void one_group(const Buffer& b) const { require(b.grid->groups() == 1, "needs a grid of one group"); }
  // One scale per head, or one for all: what a product over the last axis needs.
  void head_grid(const Buffer& b) const {
    codes(b);
    head_groups(b);
  }
  void head_groups(const Buffer& b) const {
    require(b.grid->groups() == 1 || b.grid->axis == b.rank() - 3, "needs a grid of one group or one per head");
  }
  // The largest |code| that the grid of a buffer allows.
  static int64_t largest(const Buffer& b) {
    int64_t largest = 0;
    for (int g = 0; g < b.grid->groups(); ++g) {
      largest = std::max({largest, -int64_t{b.grid->qmin(g)}, int64_t{b.grid->qmax(g)}});
    }
    return largest;
  }
  // Of two activations, whatever their codes; integer_bounds.py says why Linear needs no such question.
  void products_fit() const {
    const int64_t inner = in(0).last();
    require(inner <= kMaxInputs && inner * largest(in(0)) * largest(in(1)) < kMax31,
            "has sums that could leave 32 bits");
  }
  // Queries and keys, or an attention map and values: the shape of their product.
  Shape head_product(bool values) const {
    const int r = in(0).rank();
    require(r == 3 || r == 4, "needs (heads, tokens, width) with or without windows");
    require(in(1).rank() == r, "has a right side of another rank than its left one");
    const Shape &left = in(0).shape, &right = in(1).shape;
    Shape expected = left;
    expected[r - 1] = values ? right[r - 1] : right[r - 2];
    Shape other = left;
    other[r - 2] = values ? left[r - 1] : right[r - 2];
    other[r - 1] = values ? right[r - 1] : left[r - 1];
    require(right == other, "has a right side of another shape than its left one allows");
    return expected;
  }
  const Weight& weight() const {
    require(op_.tensors[0] >= 0 && op_.tensors[0] < static_cast<int>(program_.weights.size()),
            "names a weight that does not exist");
    return program_.weights[op_.tensors[0]];
  }

  const Program& program_;
  const Op& op_;
  std::string where_;
};

}  // namespace qvit
