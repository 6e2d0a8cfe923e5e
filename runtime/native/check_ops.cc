#include "check_ops.h"

#include <cmath>

namespace qvit {
namespace {

using Shape = std::vector<int64_t>;

class OpCheck {
 public:
  OpCheck(const Program& program, const Op& op, std::string where)
      : program_(program), op_(op), where_(std::move(where)) {}

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
        values(in());
        values(out());
        require(in().rank() == 3, "needs (rows, cols, channels)");
        const Shape& s = in().shape;
        shape({(s[0] + 1) / 2, (s[1] + 1) / 2, 4 * s[2]});
        break;
      }
      case Kind::kSelectToken:
        numbers(0, 1, 0);
        values(in());
        values(out());
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
    }
  }

 private:
  void require(bool condition, const char* what) const { need(condition, where_, what); }
  const Buffer& in(int i = 0) const { return program_.buffers[op_.inputs[i]]; }
  const Buffer& out() const { return program_.buffers[op_.output]; }
  void values(const Buffer& b) const { require(!b.grid, "takes or makes values where the program has codes"); }
  void codes(const Buffer& b) const {
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
  // Codes that are only moved keep their meaning: as many groups, as wide, as signed.
  void same_grid() const {
    codes(in());
    codes(out());
    require(in().grid->bits == out().grid->bits && in().grid->is_signed == out().grid->is_signed,
            "moves codes to a grid of other bits");
  }
  // One scale per head, or one for all: what a product over the last axis needs.
  void head_grid(const Buffer& b) const {
    codes(b);
    require(b.grid->groups() == 1 || b.grid->axis == b.rank() - 3, "needs a grid of one group or one per head");
  }

  void patchify() const {
    numbers(0, 1, 0);
    same_grid();
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

  void linear() const {
    numbers(2, 0, 0);
    codes(in());
    values(out());
    require(op_.tensors[0] >= 0 && op_.tensors[0] < static_cast<int>(program_.weights.size()),
            "names a weight that does not exist");
    const Weight& w = program_.weights[op_.tensors[0]];
    require(in().last() == w.in, "has inputs of another width than its weight");
    Shape expected = in().shape;
    expected.back() = w.out;
    shape(expected);
    constant(1, {w.out});
    const int groups = in().grid->groups();
    require(groups == 1 || in().grid->axis == in().rank() - 1,
            "needs an input grid of one group or along its last axis");
    const int blocks = groups > w.column_groups ? groups : w.column_groups;
    require(blocks % groups == 0 && blocks % w.column_groups == 0 && w.in % blocks == 0,
            "has column groups that do not divide each other");
  }

  void split_heads() const {
    numbers(0, 2, 0);
    values(in());
    values(out());
    const int64_t part = op_.integers[0], parts = op_.integers[1];
    require(part >= 0 && part < parts && parts <= kMaxInputs, "has a part outside its parts");
    require(out().rank() >= 3 && in().rank() == out().rank() - 1, "needs (..., heads, tokens, width)");
    const int r = out().rank();
    Shape expected(in().shape.begin(), in().shape.end() - 2);
    expected.insert(expected.end(), {out().shape[r - 3], in().shape[in().rank() - 2], out().shape[r - 1]});
    shape(expected);
    require(in().last() == parts * out().shape[r - 3] * out().shape[r - 1], "does not divide into its parts");
  }

  void merge_heads() const {
    numbers(0, 0, 0);
    same_grid();
    const int r = in().rank();
    require(r >= 3, "needs (..., heads, tokens, width)");
    Shape expected(in().shape.begin(), in().shape.end() - 3);
    expected.insert(expected.end(), {in().shape[r - 2], in().shape[r - 3] * in().shape[r - 1]});
    shape(expected);
    require(in().grid->groups() == 1 || (in().grid->axis == r - 3 && out().grid->axis == out().rank() - 1),
            "needs a grid of one group or one per head");
  }

  void query_key() const {
    numbers(0, 0, 1);
    require(std::isfinite(op_.reals[0]), "has a factor that is not finite");
    const int r = in(0).rank();
    require(r == 3 || r == 4, "needs (heads, tokens, width) with or without windows");
    head_grid(in(0));
    head_grid(in(1));
    values(out());
    Shape expected = in(0).shape;
    expected[r - 1] = in(1).rank() == r ? in(1).shape[r - 2] : -1;
    shape(expected);
    Shape keys = in(0).shape;
    keys[r - 2] = expected[r - 1];
    require(in(1).shape == keys, "has keys of another shape than its queries");
    require(keys[r - 1] <= kMaxInputs, "has heads too wide for 32-bit sums");
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

  void attention_value() const {
    numbers(0, 0, 0);
    const int r = in(0).rank();
    require(r == 3 || r == 4, "needs (heads, tokens, tokens) with or without windows");
    head_grid(in(0));
    head_grid(in(1));
    values(out());
    require(in(1).rank() == r, "has values of another rank than its attention");
    Shape expected = in(0).shape;
    expected[r - 1] = in(1).shape[r - 1];
    shape(expected);
    Shape value = expected;
    value[r - 2] = in(0).shape[r - 1];
    require(in(1).shape == value, "has values of another shape than its attention");
    require(value[r - 2] <= kMaxInputs, "has too many tokens for 32-bit sums");
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
    if (in().grid || out().grid) {
      same_grid();
      require(in().grid->groups() == 1 || (in().grid->axis == in().rank() - 1 && out().grid->axis == out().rank() - 1),
              "needs a grid of one group or along its last axis");
    }
  }

  const Program& program_;
  const Op& op_;
  std::string where_;
};

}  // namespace

void check_op(const Program& program, const Op& op, const std::string& where) { OpCheck(program, op, where).run(); }

}  // namespace qvit
