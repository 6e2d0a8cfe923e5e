// What the integer-only ops demand: shapes, grids, the ranges of their integers, and that no sum or product can leave
// the integers it is computed in, whatever the image. The bounds are those of qvit_runtime/integer_bounds.py.
#include <algorithm>
#include <cstdlib>

#include "integer_math.h"
#include "op_check.h"

namespace qvit {
namespace {

constexpr int64_t kMax62 = int64_t{1} << 62;
constexpr int64_t kMaxBias = int64_t{1} << 28;  // of a softmax

class IntegerOpCheck : OpCheck {
 public:
  using OpCheck::OpCheck;

  void run() {
    const bool two = op_.kind == Kind::kQueryKeyAccumulate || op_.kind == Kind::kAttentionValueAccumulate ||
                     op_.kind == Kind::kAddRequantize || op_.kind == Kind::kShiftAttentionValue;
    require(op_.inputs.size() == (two ? 2u : 1u), "has another number of inputs");
    switch (op_.kind) {
      case Kind::kDequantize:
        numbers(0, 0, 0);
        any_codes(in());
        values(out());
        same_shape();
        break;
      case Kind::kQuantizeRegions: quantize_regions(); break;
      case Kind::kLinearAccumulate: linear(); break;
      case Kind::kQueryKeyAccumulate: head_sums(false); break;
      case Kind::kAttentionValueAccumulate: head_sums(true); break;
      case Kind::kRequantize:
        numbers(2, 0, 0);
        rescaled(in(), 0);
        stream();
        same_shape();
        break;
      case Kind::kAddRequantize:
        numbers(4, 0, 0);
        rescaled(in(0), 0);
        rescaled(in(1), 2);
        stream();
        same_shape();
        require(in(1).shape == out().shape, "adds different shapes");
        break;
      case Kind::kIntegerTokens: tokens(); break;
      case Kind::kSumTokens: sum_tokens(); break;
      case Kind::kIntegerLayerNorm: layer_norm(); break;
      case Kind::kShiftGelu: shift_gelu(); break;
      case Kind::kShiftmax: shiftmax(); break;
      case Kind::kLogIntSoftmax: log_int_softmax(); break;
      case Kind::kShiftAttentionValue: shift_attention_value(); break;
      default: require(false, "is of no kind that is checked here");
    }
  }

 private:
  const Integers& integers(int i) const {
    require(op_.tensors[i] >= 0 && op_.tensors[i] < static_cast<int>(program_.integers.size()),
            "names integers that do not exist");
    return program_.integers[op_.tensors[i]];
  }
  void integers(int i, const Shape& expected, int64_t low = -kMax31 + 1, int64_t high = kMax31 - 1) const {
    const Integers& given = integers(i);
    require(given.shape == expected, "has integers of another shape");
    for (int32_t v : given.data) require(v >= low && v <= high, "has an integer out of range");
  }
  static int64_t magnitude(const Integers& given) {
    int64_t largest = 0;
    for (int32_t v : given.data) largest = std::max<int64_t>(largest, std::llabs(v));
    return largest;
  }

  // Codes that R is applied to, with multiplier and shift at t[i] and t[i + 1]. |x m| + half < 2^63 by their ranges.
  void rescaled(const Buffer& b, int i) const {
    any_codes(b);
    const int64_t groups = b.grid->groups();
    for (int k = 0; k < 2; ++k) {
      const int64_t given = static_cast<int64_t>(integers(i + k).data.size());
      require(given == 1 || given == groups, "has multipliers or shifts of another number than groups");
      integers(i + k, {given}, k == 0 ? -kMax31 + 1 : 1, k == 0 ? kMax31 - 1 : 62);
    }
  }
  // An output that is rounded and clipped to: codes of up to 16 bits.
  void stream() const {
    any_codes(out());
    require(out().grid->bits[0] <= 16, "makes codes of more than 16 bits");
  }
  void sums() const {
    any_codes(out());
    require(out().grid->bits[0] == 32, "makes sums that are not codes of 32 bits");
  }

  void quantize_regions() const {
    numbers(0, 0, 0);
    values(in());
    codes(out());
    Shape expected = in().shape;
    expected.back() *= 2;
    shape(expected);
    const Grid& grid = *out().grid;
    require(grid.groups() == 2 && grid.axis == out().rank() - 1 && !grid.is_signed,
            "needs an unsigned grid of two regions along the last axis");
  }

  void linear() const {
    numbers(2, 0, 0);
    codes(in());
    one_group(in());
    const Weight& w = weight();
    require(w.column_groups == 1, "has a weight of more than one column group");
    require(in().last() == w.in, "has inputs of another width than its weight");
    Shape expected = in().shape;
    expected.back() = w.out;
    shape(expected);
    sums();
    groups_along(out(), out().rank() - 1);
    if (op_.tensors[1] != -1) integers(1, {w.out});
    for (int64_t o = 0; o < w.out; ++o) {
      int64_t total = 0;
      for (int64_t k = 0; k < w.in; ++k) total += std::abs(w.codes[o * w.in + k]);
      total *= largest(in());
      if (op_.tensors[1] != -1) total += std::llabs(integers(1).data[o]);
      require(total < kMax31, "has sums that could leave 32 bits");
    }
  }

  void head_sums(bool values) const {
    numbers(0, 0, 0);
    head_grid(in(0));
    head_grid(in(1));
    shape(head_product(values));
    sums();
    head_groups(out());
    products_fit();
  }

  void tokens() const {
    numbers(4, 0, 0);
    rescaled(in(), 2);
    stream();
    one_group(out());
    require(in().rank() == 2, "needs (tokens, channels)");
    integers(1, in().shape);
    const Integers& prefix = integers(0);
    require(prefix.shape.size() == 2 && prefix.shape[1] == in().last(), "has a prefix of another width");
    shape({prefix.shape[0] + in().shape[0], in().last()});
  }

  void sum_tokens() const {
    numbers(0, 1, 0);
    any_codes(in());
    require(in().grid->bits[0] <= 16, "sums codes of more than 16 bits");
    require(in().rank() >= 2, "needs (tokens, channels)");
    groups_along(in(), in().rank() - 1);
    const int64_t start = op_.integers[0];
    require(start >= 0 && start < in().rows(), "has no token to sum");
    shape({in().last()});
    sums();
    require((in().rows() - start) * largest(in()) < kMax31, "has sums that could leave 32 bits");
  }

  void layer_norm() const {
    numbers(3, 2, 0);
    any_codes(in());
    require(in().grid->bits[0] <= 16, "takes codes of more than 16 bits");
    stream();
    same_shape();
    groups_along(in(), in().rank() - 1);
    groups_along(out(), out().rank() - 1);
    const int64_t width = in().last(), shift = op_.integers[0], zero = op_.integers[1];
    integers(0, {width});
    integers(1, {width});
    int64_t step = 1;
    if (op_.tensors[2] != -1) {
      integers(2, {width}, 0, 8);
      step = int64_t{1} << magnitude(integers(2));
    }
    require(shift >= 9 && shift <= 62, "has a shift outside 9..62");
    int64_t low = INT32_MAX, high = INT32_MIN;
    for (int g = 0; g < in().grid->groups(); ++g) {
      low = std::min<int64_t>(low, in().grid->qmin(g));
      high = std::max<int64_t>(high, in().grid->qmax(g));
    }
    require(zero >= low && zero <= high, "has a zero that is no code");
    const int64_t span = (high - low) * step;  // of x around its mean; at most 2^24
    require(width <= (kMax62 - 1) / (span * span), "has sums of squares that could leave 62 bits");
  }

  void exponential(int64_t sum_of) const {
    const int64_t unit = op_.integers[0], fraction = op_.integers[1];
    require(unit >= 1 && unit < kMax31 && fraction >= 1 && fraction <= 30, "has a unit or fraction out of range");
    require(unit << fraction <= (kMax31 - 1) / sum_of, "has exponentials whose sum could leave 31 bits");
  }

  void shift_gelu() const {
    numbers(0, 2, 0);
    codes(in());
    one_group(in());
    sums();
    one_group(out());
    same_shape();
    exponential(2);
  }

  void scores() const {
    one_group(in());
    codes(out());
    one_group(out());
    require(!out().grid->is_signed, "makes signed codes of a softmax");
    same_shape();
    const Shape& s = in().shape;
    const int r = in().rank();
    require(r == 3 || r == 4, "needs (heads, tokens, tokens) with or without windows");
    if (op_.tensors[0] != -1) integers(0, {s[r - 3], s[r - 2], s[r - 1]}, -kMaxBias, kMaxBias);
    if (op_.tensors[1] != -1) {
      require(r == 4, "has a mask but no windows");
      integers(1, {s[0], s[2], s[3]}, -kMaxBias, kMaxBias);
    }
  }

  void shiftmax() const {
    numbers(2, 2, 0);
    any_codes(in());
    require(in().grid->bits[0] <= 16, "takes codes of more than 16 bits");
    scores();
    exponential(std::max<int64_t>(2, in().last()));
  }

  void log_int_softmax() const {
    numbers(2, 3, 0);
    codes(in());
    scores();
    const int64_t ln2 = op_.integers[0], linear = op_.integers[1], constant = op_.integers[2], lowest = ln2 - 1;
    for (int64_t v : op_.integers) require(v >= 1 && v < kMax31, "has a parameter out of range");
    require(linear >= 2 * lowest && constant - lowest * (linear - lowest) >= 1,
            "has an exponential that does not rise, or is not positive");
    require(constant <= ((kMax62 >> 30) - 1) / in().last(), "has exponentials whose sum could leave 62 bits");
  }

  void shift_attention_value() const {
    numbers(0, 0, 0);
    codes(in(0));
    one_group(in(0));
    require(!in(0).grid->is_signed, "takes signed codes for logarithms");
    head_grid(in(1));
    values(out());
    shape(head_product(true));
    require(in(0).last() <= kMaxInputs, "has sums of bytes that could leave 32 bits");
    require(in(0).last() * largest(in(1)) < (kMax62 >> shift_fraction(in(0).grid->bits[0])),
            "has sums that could leave 62 bits");
  }
};

}  // namespace

void check_integer_op(const Program& program, const Op& op, const std::string& where) {
  IntegerOpCheck(program, op, where).run();
}

}  // namespace qvit
