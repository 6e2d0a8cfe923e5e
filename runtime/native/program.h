// The Program as the bindings hand it over: plain values, nothing checked yet.
//
// It mirrors qvit_runtime/program.py one to one, but for two things. Names are gone (buffers, weights, constants and
// integers are numbered), so the native side never parses anything. And a weight's bits are those of its codes: what
// is stored at b bits as mid-rise arrives as b + 1, whose range its odd codes fill but for the lowest. `check.h` decides
// whether a program is well formed, `plan.h` turns it into steps.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace qvit {

// What a user sees when a program is refused: one line that names the op and what is wrong with it.
struct ProgramError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

struct Grid {
  std::vector<int> bits;  // one per group: each 2..8 (narrow codes), or all 16, or all 32 (wide codes)
  bool is_signed = false;
  std::vector<float> scale;
  std::vector<float> offset;
  int axis = 0;

  int groups() const { return static_cast<int>(bits.size()); }
  bool wide() const { return bits[0] > 8; }
  int qmin(int group) const { return is_signed ? static_cast<int>(-(int64_t{1} << (bits[group] - 1))) : 0; }
  int qmax(int group) const {
    return static_cast<int>((int64_t{1} << (is_signed ? bits[group] - 1 : bits[group])) - 1);
  }
  Grid group(int g) const { return {{bits[g]}, is_signed, {scale[g]}, {offset[g]}, axis}; }
  int levels(int group) const { return (1 << bits[group]) - 1; }  // qmax - qmin of narrow codes
};

struct Buffer {
  std::vector<int64_t> shape;  // of one image
  std::optional<Grid> grid;    // none: float32 values

  int64_t elements() const {
    int64_t n = 1;
    for (int64_t s : shape) n *= s;
    return n;
  }
  int64_t last() const { return shape.back(); }
  int64_t rows() const { return elements() / last(); }  // everything but the last axis, flattened
  int rank() const { return static_cast<int>(shape.size()); }
  bool narrow() const { return grid && !grid->wide(); }
  int64_t element_bytes() const { return narrow() ? 1 : 4; }  // values are floats, wide codes int32
};

struct Weight {
  int64_t out = 0, in = 0;
  int row_groups = 0, column_groups = 0;
  std::vector<int8_t> codes;  // (out, in)
  std::vector<int> bits;      // (row_groups, column_groups), of the two's complement that holds the codes: 2..8
  std::vector<float> scale;   // (row_groups, column_groups)
};

struct Constant {
  std::vector<int64_t> shape;
  std::vector<float> data;
};

struct Integers {
  std::vector<int64_t> shape;
  std::vector<int32_t> data;
};

enum class Kind {
  kQuantize,
  kPatchify,
  kLinear,
  kSplitHeads,
  kMergeHeads,
  kQueryKey,
  kSoftmax,
  kAttentionValue,
  kLayerNorm,
  kGelu,
  kAdd,
  kMultiply,
  kTokens,
  kWindowPartition,
  kWindowMerge,
  kPatchMerge,
  kSelectToken,
  kMeanTokens,
  kDequantize,
  kQuantizeRegions,
  kLinearAccumulate,
  kQueryKeyAccumulate,
  kAttentionValueAccumulate,
  kRequantize,
  kAddRequantize,
  kIntegerTokens,
  kSumTokens,
  kIntegerLayerNorm,
  kShiftGelu,
  kShiftmax,
  kLogIntSoftmax,
  kShiftAttentionValue,  // the last one: `kKinds` counts on it
};
inline constexpr int kKinds = static_cast<int>(Kind::kShiftAttentionValue) + 1;

// Meaning of the numbers, by kind (t: tensors, i: integers, r: reals):
//   Patchify         i0 patch
//   Linear           t0 weight, t1 bias constant
//   SplitHeads       i0 part, i1 parts
//   QueryKey         inputs query, key; r0 factor
//   Softmax          t0 bias constant or -1, t1 mask constant or -1
//   AttentionValue   inputs attention, value
//   LayerNorm        t0 weight constant, t1 bias constant, r0 eps
//   Multiply         t0 factor constant
//   Tokens           t0 prefix constant, t1 position constant
//   WindowPartition, WindowMerge   i0, i1 window; i2, i3 shift
//   SelectToken      i0 index
//   MeanTokens       i0 start
// Integer-only ops; their tensors are integers but for t0 of LinearAccumulate:
//   LinearAccumulate            t0 weight, t1 bias or -1
//   QueryKeyAccumulate          inputs query, key
//   AttentionValueAccumulate    inputs attention, value; as ShiftAttentionValue
//   Requantize                  t0 multiplier, t1 shift
//   AddRequantize               inputs left, right; t0, t1 left multiplier and shift, t2, t3 right
//   IntegerTokens               t0 prefix, t1 position, t2 multiplier, t3 shift
//   SumTokens                   i0 start
//   IntegerLayerNorm            t0 multiplier, t1 bias, t2 exponent or -1; i0 shift, i1 zero
//   ShiftGelu                   i0 unit, i1 fraction
//   Shiftmax                    t0 bias or -1, t1 mask or -1; i0 unit, i1 fraction
//   LogIntSoftmax               t0 bias or -1, t1 mask or -1; i0 ln2, i1 linear, i2 constant
struct Op {
  Kind kind;
  std::vector<int> inputs;
  int output = -1;
  std::vector<int> tensors;
  std::vector<int64_t> integers;
  std::vector<double> reals;
};

struct Program {
  std::vector<Buffer> buffers;
  std::vector<Weight> weights;
  std::vector<Constant> constants;
  std::vector<Integers> integers;
  std::vector<Op> ops;
  std::vector<int> inputs;   // buffers the caller fills
  std::vector<int> outputs;  // buffers the caller reads
};

const char* kind_name(Kind kind);

}  // namespace qvit
