#include <cmath>

#include "op_check.h"

namespace qvit {
namespace {

class ValueOpCheck : OpCheck {
 public:
  using OpCheck::OpCheck;

  void run() {
    const size_t inputs =
        op_.kind == Kind::kQueryKey || op_.kind == Kind::kAttentionValue || op_.kind == Kind::kAdd ? 2 : 1;
    require(op_.inputs.size() == inputs, "has another number of inputs");
    switch (op_.kind) {
      case Kind::kQuantize:
        numbers(0, 0, 0);
        values(in());
        codes(out());
        same_shape();
        break;
      case Kind::kPatchify: patchify(); break;
      case Kind::kLinear: linear(); break;
      case Kind::kSplitHeads: split_heads(); break;
      case Kind::kMergeHeads: merge_heads(); break;
      case Kind::kQueryKey: query_key(); break;
      case Kind::kSoftmax: softmax(); break;
      case Kind::kAttentionValue: attention_value(); break;
      case Kind::kLayerNorm:
        numbers(2, 0, 1);
        values(in());
        values(out());
        same_shape();
        constant(0, {out().last()});
        constant(1, {out().last()});
        require(op_.reals[0] >= 0.0 && std::isfinite(op_.reals[0]), "has an eps that is not a finite number");
        break;
      case Kind::kGelu:
        numbers(0, 0, 0);
        values(in());
        values(out());
        same_shape();
        break;
      case Kind::kAdd:
        numbers(0, 0, 0);
        values(in());
        values(in(1));
        values(out());
        same_shape();
        require(in(1).shape == out().shape, "adds different shapes");
        break;
      case Kind::kMultiply: {
        numbers(1, 0, 0);
        values(in());
        values(out());
        same_shape();
        constant(0, {tensor(0).shape == Shape{1} ? 1 : out().last()});
        break;
      }
      case Kind::kTokens: tokens(); break;
      case Kind::kWindowPartition: windows(in(), out()); break;
      case Kind::kWindowMerge: windows(out(), in()); break;
      case Kind::kPatchMerge: {
        numbers(0, 0, 0);
        require(in().rank() == 3, "needs (rows, cols, channels)");
        const Shape& s = in().shape;
        shape({(s[0] + 1) / 2, (s[1] + 1) / 2, 4 * s[2]});
        values_or_same_codes();
        if (in().grid) one_group(in());
        break;
      }
      case Kind::kSelectToken:
        numbers(0, 1, 0);
        values_or_same_codes();
        require(in().rank() == 2, "needs (tokens, channels)");
        require(op_.integers[0] >= 0 && op_.integers[0] < in().shape[0], "selects a token that does not exist");
        shape({in().last()});
        break;
      case Kind::kMeanTokens:
        numbers(0, 1, 0);
        values(in());
        values(out());
        require(in().rank() >= 2, "needs (tokens, channels)");
        require(op_.integers[0] >= 0 && op_.integers[0] < in().rows(), "has no token to average");
        shape({in().last()});
        break;
      default: require(false, "is of no kind that is checked here");
    }
  }

 private:
  // Both sides values, or the same codes with groups along the last axis at most.
  void values_or_same_codes() const {
    if (!in().grid && !out().grid) return;
    any_codes(in());
    any_codes(out());
    groups_along(in(), in().rank() - 1);
    groups_along(out(), out().rank() - 1);
    require(in().grid->groups() == out().grid->groups(), "moves codes to a grid of other groups");
    same_codes(
        in().grid->groups(), [](int64_t g) { return static_cast<int>(g); },
        [](int64_t g) { return static_cast<int>(g); });
  }

  void patchify() const {
    numbers(0, 1, 0);
    codes(in());
    codes(out());
    require(in().grid->bits == out().grid->bits && in().grid->is_signed == out().grid->is_signed,
            "moves codes to a grid of other bits");
    const int64_t patch = op_.integers[0];
    require(in().rank() == 3 && patch >= 1, "needs (channels, rows, columns) and a patch of at least 1");
    const Shape& s = in().shape;
    require(patch <= s[1] && patch <= s[2], "has a patch larger than the image");
    const int64_t rows = s[1] / patch, columns = s[2] / patch, width = s[0] * patch * patch;
    require(out().shape == Shape{rows * columns, width} || out().shape == Shape{rows, columns, width},
            "has an output of another shape");
    require(in().grid->groups() == 1 || (in().grid->axis == 0 && out().grid->axis == out().rank() - 1),
            "needs a grid of one group or one per channel");
  }

  // An input of two regions (QuantizeRegions) is two planes of as many columns as the weight has inputs.
  void linear() const {
    numbers(2, 0, 0);
    codes(in());
    values(out());
    const Weight& w = weight();
    const int groups = in().grid->groups(), planes = in().last() == 2 * w.in ? 2 : 1;
    require(in().last() == planes * w.in, "has inputs of another width than its weight");
    require(planes == 1 || groups == 2, "has two planes of inputs that are not two regions");
    Shape expected = in().shape;
    expected.back() = w.out;
    shape(expected);
    constant(1, {w.out});
    require(groups == 1 || in().grid->axis == in().rank() - 1,
            "needs an input grid of one group or along its last axis");
    const int columns = planes * w.column_groups, blocks = groups > columns ? groups : columns;
    require(blocks % groups == 0 && blocks % columns == 0 && w.in % (blocks / planes) == 0,
            "has column groups that do not divide each other");
  }

  void split_heads() const {
    numbers(0, 2, 0);
    const int64_t part = op_.integers[0], parts = op_.integers[1];
    require(part >= 0 && part < parts && parts <= kMaxInputs, "has a part outside its parts");
    require(out().rank() >= 3 && in().rank() == out().rank() - 1, "needs (..., heads, tokens, width)");
    const int r = out().rank();
    const int64_t heads = out().shape[r - 3], columns = in().last();
    Shape expected(in().shape.begin(), in().shape.end() - 2);
    expected.insert(expected.end(), {heads, in().shape[in().rank() - 2], out().shape[r - 1]});
    shape(expected);
    require(columns == parts * heads * out().last(), "does not divide into its parts");
    if (!in().grid && !out().grid) return;
    any_codes(in());
    any_codes(out());
    groups_along(in(), in().rank() - 1);
    head_groups(out());
    same_codes(
        columns / parts, [&](int64_t c) { return group_of(in(), part * columns / parts + c, columns); },
        [&](int64_t c) { return group_of(out(), c, columns / parts); });
  }

  void merge_heads() const {
    numbers(0, 0, 0);
    any_codes(in());
    any_codes(out());
    const int r = in().rank();
    require(r >= 3, "needs (..., heads, tokens, width)");
    Shape expected(in().shape.begin(), in().shape.end() - 3);
    expected.insert(expected.end(), {in().shape[r - 2], in().shape[r - 3] * in().shape[r - 1]});
    shape(expected);
    head_groups(in());
    groups_along(out(), out().rank() - 1);
    same_codes(
        out().last(), [&](int64_t c) { return group_of(in(), c, out().last()); },
        [&](int64_t c) { return group_of(out(), c, out().last()); });
  }

  void query_key() const {
    numbers(0, 0, 1);
    require(std::isfinite(op_.reals[0]), "has a factor that is not finite");
    head_grid(in(0));
    head_grid(in(1));
    values(out());
    shape(head_product(false));
    products_fit();
  }

  void softmax() const {
    numbers(2, 0, 0);
    values(in());
    values(out());
    same_shape();
    const Shape& s = in().shape;
    const int r = in().rank();
    if (op_.tensors[0] != -1) {
      require(r >= 3, "has a bias but no heads");
      constant(0, {s[r - 3], s[r - 2], s[r - 1]});
    }
    if (op_.tensors[1] != -1) {
      require(r == 4, "has a mask but no windows");
      constant(1, {s[0], s[2], s[3]});
    }
  }

  // A map of two regions is two planes of as many columns as there are values.
  void attention_value() const {
    numbers(0, 0, 0);
    values(out());
    head_grid(in(1));
    const int r = in(0).rank();
    require(r == 3 || r == 4, "needs (heads, tokens, tokens) with or without windows");
    require(in(1).rank() == r, "has values of another rank than its attention");
    const int64_t tokens = in(1).shape[r - 2];
    const int planes = in(0).last() == 2 * tokens ? 2 : 1;
    if (planes == 2) {
      codes(in(0));
      require(in(0).grid->groups() == 2 && in(0).grid->axis == r - 1, "has two planes that are not two regions");
    } else {
      head_grid(in(0));
    }
    require(in(0).last() == planes * tokens, "has values of another shape than its attention");
    products_fit();
    Shape expected = in(0).shape;
    expected[r - 1] = in(1).last();
    shape(expected);
    Shape value = expected;
    value[r - 2] = tokens;
    require(in(1).shape == value, "has values of another shape than its attention");
  }

  void tokens() const {
    numbers(2, 0, 0);
    values(in());
    values(out());
    require(in().rank() == 2, "needs (tokens, channels)");
    const Constant& prefix = tensor(0);
    const int64_t channels = in().last();
    require(prefix.shape.size() == 2 && prefix.shape[1] == channels, "has a constant of another shape");
    constant(1, in().shape);
    shape({prefix.shape[0] + in().shape[0], channels});
  }

  void windows(const Buffer& image, const Buffer& cut) const {
    numbers(0, 4, 0);
    require(image.rank() == 3, "needs (rows, cols, channels)");
    const Shape& s = image.shape;
    for (int axis = 0; axis < 2; ++axis) {
      require(op_.integers[axis] >= 1 && op_.integers[axis] <= kMaxElements, "has an empty window");
      require(op_.integers[2 + axis] >= 0 && op_.integers[2 + axis] < s[axis], "has a shift outside the image");
    }
    const int64_t height = op_.integers[0], width = op_.integers[1];
    const int64_t down = (s[0] + height - 1) / height, across = (s[1] + width - 1) / width;
    require(cut.shape == Shape{down * across, height * width, s[2]}, "has windows of another shape");
    values_or_same_codes();
  }
};

}  // namespace

void check_op(const Program& program, const Op& op, const std::string& where) {
  if (op.kind >= Kind::kDequantize) return check_integer_op(program, op, where);
  ValueOpCheck(program, op, where).run();
}

}  // namespace qvit
