// The contract between steps and instruction sets: a table of functions, each with one struct argument.
//
// Kernels take raw pointers, allocate nothing, throw nothing and keep no state; whatever they need was checked when the
// program was loaded. Every function computes each row from that row alone, in an order that does not depend on how
// many rows it was given: that is why results are the same for any thread count and batch size.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels_integer.h"
#include "kernels_training.h"

namespace qvit {

enum class Epilogue {
  kValues,     // float out = v
  kAdd,        // float out = v + residual
  kGelu,       // float out = gelu(v)
  kCodes,      // codes = clip(rint(v))                          the grid is folded into scale and bias
  kGeluCodes,  // codes = clip(rint(gelu(v) * grid_factor + grid_shift))
  // Integer-only, of one block: s = acc + correction, the bias being part of the correction; see IntegerEpilogue.
  kSums,           // s
  kRequantize,     // clip(R(s))
  kAddRequantize,  // clip(R(s) + R(residual))
};

// v[row][column] = sum over blocks of (acc + correction) * scale, plus bias; acc is exact. Layouts: see layout.h.
struct GemmArgs {
  const uint8_t* a;
  ptrdiff_t a_stride;
  int rows;

  const int8_t* b;  // first panel of this call
  int columns;      // valid columns from there on
  int blocks;
  int block_width;            // inputs of a block
  int b_shift;                // added to every code of b (one block): what an unsigned operand lost to fit signed bytes
  const int16_t* runs;        // [panel][block]: quads before widening, 0 for the wide path
  const int32_t* correction;  // [block][column_stride]
  const float* scale;         // [block][column_stride]; neither scale nor bias where the epilogue is integer
  const float* bias;          // [column_stride]
  ptrdiff_t column_stride;    // readable to a whole panel, as are all per-column arrays

  Epilogue epilogue;
  float* out;                // kValues, kAdd, kGelu
  const float* residual;     // kAdd
  uint8_t* codes;            // kCodes, kGeluCodes
  ptrdiff_t out_stride;      // elements between rows of out, residual or codes
  const float* levels;       // largest stored code per column
  const float* grid_factor;  // kGeluCodes
  const float* grid_shift;

  IntegerEpilogue integer;  // kSums, kRequantize, kAddRequantize

  int chunk_rows;  // rows that go through all panels together: a multiple of kTileRows
  int16_t* wide;   // scratch: chunk_rows x wide_stride(inputs), for short runs
};

constexpr bool is_integer(Epilogue e) { return e >= Epilogue::kSums; }

constexpr ptrdiff_t wide_stride(ptrdiff_t inputs) { return (inputs + 15) / 16 * 16 + 16; }

// Plain quantization, exactly the interpreter's: stored = rint(clip((x - offset) / scale, qmin, qmax)) - qmin.
struct QuantizeArgs {
  const float* x;
  uint8_t* codes;
  ptrdiff_t count;
  const float *scale, *offset, *qmin, *qmax;  // one each, or one per element
  bool per_element;
};

// LayerNorm of rows; with codes, the grid is folded into weight and bias.
struct LayerNormArgs {
  const float* x;
  int rows, width;
  const float *weight, *bias;
  float eps;
  float* out;  // null when codes are wanted
  uint8_t* codes;
  const float* levels;
};

// Softmax of rows of width n; `bias` and `mask` may be null and have rows of n. Rows of x and out or codes are writable
// up to the next multiple of kPanel; what is written behind the n-th column means nothing.
struct SoftmaxArgs {
  float* x;  // overwritten
  ptrdiff_t x_stride;
  int rows, width;
  const float *bias, *mask;
  float* out;      // null when codes are wanted
  uint8_t* codes;  // stored = rint(clip(p * factor + shift, 0, levels))
  ptrdiff_t out_stride;
  float factor, shift, levels;
};

struct GeluArgs {
  const float* x;
  float* out;
  ptrdiff_t count;
};

// Rows of codes become a packed B operand: 2^(b-1) is taken off each stored code. That undoes the shift of a signed
// code; an unsigned one moves into the range of signed bytes, and b_shift (2^(b-1), else 0) makes up for it in the
// product.
struct PackArgs {
  const uint8_t* codes;
  ptrdiff_t stride;
  int rows, width;
  int bias, b_shift;
  int8_t* packed;
  int32_t* correction;  // [column]: qmin of the A operand times the sum of the column's codes
  int a_qmin;
};

struct Kernels {
  const char* name;
  void (*gemm)(const GemmArgs&);
  void (*quantize)(const QuantizeArgs&);
  void (*layer_norm)(const LayerNormArgs&);
  void (*softmax)(const SoftmaxArgs&);
  void (*gelu)(const GeluArgs&);
  void (*pack_keys)(const PackArgs&);    // columns of B are the rows (tokens), inputs are the width
  void (*pack_values)(const PackArgs&);  // inputs of B are the rows (tokens), columns are the width
  const IntegerKernels* integer;
  const TrainingKernels* training;
};

extern const Kernels kScalarKernels;
#if defined(QVIT_BUILD_AVX512)
extern const Kernels kAvx512Kernels;
#endif
#if defined(QVIT_BUILD_AVX2)
extern const Kernels kAvx2Kernels;
#endif

}  // namespace qvit
