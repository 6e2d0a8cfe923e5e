// The Program as the bindings hand it over: plain values, nothing checked yet.
//
// It mirrors qvit_runtime/program.py one to one; names are gone (buffers, weights and constants are numbered), so the
// native side never parses anything. `check.h` decides whether it is well formed, `plan.h` turns it into steps.
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
  std::vector<int> bits;  // one per group, 2..8
  bool is_signed = false;
  std::vector<float> scale;
  std::vector<float> offset;
  int axis = 0;

  int groups() const { return static_cast<int>(bits.size()); }
  int qmin(int group) const { return is_signed ? -(1 << (bits[group] - 1)) : 0; }
  int levels(int group) const { return (1 << bits[group]) - 1; }  // qmax - qmin
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
};

struct Weight {
  int64_t out = 0, in = 0;
  int row_groups = 0, column_groups = 0;
  std::vector<int8_t> codes;  // (out, in)
  std::vector<int> bits;      // (row_groups, column_groups)
  std::vector<float> scale;   // (row_groups, column_groups)
};

struct Constant {
  std::vector<int64_t> shape;
  std::vector<float> data;
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
};

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
  std::vector<Op> ops;
  std::vector<int> inputs;   // buffers the caller fills
  std::vector<int> outputs;  // buffers the caller reads
};

const char* kind_name(Kind kind);

}  // namespace qvit
