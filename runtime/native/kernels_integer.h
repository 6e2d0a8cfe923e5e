// The integer-only half of the contract between steps and instruction sets (see kernels.h): one row at a time, exact.
// Every path gives the integers of kernels_scalar_integer.cc; only speed differs.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qvit {

// A row of codes, of which one pointer is null: narrow codes are stored as code - qmin, wide ones as they are.
struct CodeRow {
  const uint8_t* narrow;
  const int32_t* wide;
};
struct MutableCodeRow {
  uint8_t* narrow;
  int32_t* wide;
};

// R(x; m, e) = (x * multiplier + half) >> shift, each by column. For narrow x, which come as stored codes, `half` is
// 2^(e-1) + qmin * m; for wide x just 2^(e-1). All arrays by column are readable to the end of a panel.
struct Rescaling {
  const int64_t *multiplier, *half, *shift;
  Rescaling from(ptrdiff_t column) const { return {multiplier + column, half + column, shift + column}; }
};

// The grid of a result, by column: clipped to [low, high]. Narrow results are stored minus `low`.
struct Clipping {
  const int32_t *low, *high;
  Clipping from(ptrdiff_t column) const { return {low + column, high + column}; }
};

// out = clip(R(left) + R(right)); without a right side (both pointers null) just clip(R(left)).
struct RequantizeArgs {
  CodeRow left, right;
  Rescaling left_scale, right_scale;
  Clipping clip;
  ptrdiff_t count;
  bool small;  // no R leaves [-2^30, 2^30)
  MutableCodeRow out;
};

// What becomes of the sums of a GEMM (Epilogue::kSums, kRequantize, kAddRequantize); all per column of the call, and
// `small` in the sense of RequantizeArgs.
struct IntegerEpilogue {
  Rescaling scale, residual_scale;
  Clipping clip;
  const int32_t* residual;  // kAddRequantize: wide codes, in rows of GemmArgs::out_stride like the output
  MutableCodeRow out;       // kSums: wide
};

// LayerNorm of one row; see IntegerLayerNorm in qvit_runtime/integer_ops.py.
struct IntegerLayerNormArgs {
  CodeRow x;
  int width;
  const int32_t* base;      // by column: x = (stored + base) << exponent
  const int32_t* exponent;  // by column, or null for none
  const int32_t *multiplier, *bias;
  int shift;
  bool small;  // sums of every eighth column fit 32 bits, and so do results before the last shift
  Clipping clip;
  MutableCodeRow out;
};

// Softmax of one row by shifts; `bias` and `mask` may be null. out has `bits` bits.
struct ShiftmaxArgs {
  CodeRow x;
  int width;
  const int32_t *bias, *mask;
  int32_t unit;
  int fraction, bits;
  uint8_t* out;
  int32_t* scratch;  // `width`, rounded up to a panel; out is writable that far too
};

// Softmax of one row of narrow codes to log2 codes.
struct LogIntSoftmaxArgs {
  const uint8_t* x;
  int width;
  const int32_t *bias, *mask;
  int64_t ln2, linear, constant;
  const int64_t* table;  // e by d = 0..255, for rows without bias and mask
  int bits;
  uint8_t* out;
  int64_t* scratch;  // `width`
};

// Two-scaled codes of `count` values: see QuantizeRegions.
struct QuantizeRegionsArgs {
  const float* x;
  ptrdiff_t count;
  float offset, low_scale, high_scale, low_top, high_top;
  uint8_t *low, *high;
};

struct IntegerKernels {
  void (*requantize)(const RequantizeArgs&);
  void (*layer_norm)(const IntegerLayerNormArgs&);
  void (*shiftmax)(const ShiftmaxArgs&);
  void (*quantize_regions)(const QuantizeRegionsArgs&);
};

extern const IntegerKernels kScalarIntegerKernels;

// The scalar kernels by name: other paths use them for the ends of rows, and where vector code would gain nothing.
namespace scalar {
void requantize(const RequantizeArgs& r);
void layer_norm(const IntegerLayerNormArgs& n);
void shiftmax(const ShiftmaxArgs& s);
void quantize_regions(const QuantizeRegionsArgs& q);
}  // namespace scalar

// The same for all paths: its loops are look-ups and comparisons of 64-bit numbers.
void log_int_softmax(const LogIntSoftmaxArgs& s);

}  // namespace qvit
