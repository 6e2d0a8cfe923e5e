// Integer-only attention: the products with their Requantize behind them, alone or with Shiftmax between the two, and
// the product with log2 codes. As in step_attention.h, six rows of one head at a time stay in the first-level cache:
//
//   q rows -> [gemm with packed keys, requantize] -> [Shiftmax] -> codes -> [gemm with packed values, requantize] ->
//   out
#pragma once

#include "step.h"
#include "step_integer.h"
#include "step_pack.h"

namespace qvit {

// One product and what is wanted of it. All buffers have the axes (..., H, N, x).
struct SumsParts {
  const Grid *left, *right;
  const Buffer* sums;
  const Buffer* requantized = nullptr;  // the output of a Requantize behind it; null: the sums are wanted
  const Integers *multiplier = nullptr, *shift = nullptr;
};

// May a Requantize to this buffer be fused? Rows of one head must share a group.
bool head_rows_share_group(const Buffer& buffer);

// Left operand codes at `left`, packed right operand in storage `right`; `merged`: out is the place in merged heads.
std::unique_ptr<Step> make_head_sums(const Kernels& kernels, const HeadShape& shape, bool values,
                                     const SumsParts& parts, const HeadPlace& left, int right, const HeadPlace& out,
                                     bool merged);

struct IntegerAttentionParts {
  HeadShape shape;
  SumsParts scores, product;  // scores requantized
  int64_t unit;
  int fraction;
  SoftmaxConstants constants;
  const Buffer* map;  // the output of Shiftmax
  HeadPlace query, output;
  int keys, values;  // storages written by make_pack
  bool merged;
};
std::unique_ptr<Step> make_integer_attention(const Kernels& kernels, const IntegerAttentionParts& parts);

// step_shift_attention.cc: log2 codes (dense, in storage `from`) times packed values -> values (dense). The left
// operand of the product is powers of two, whose grid this is.
const Grid& power_grid();
std::unique_ptr<Step> make_shift_attention_value(const Kernels& kernels, const HeadShape& shape,
                                                 const Buffer& attention, const Buffer& value, int from, int values,
                                                 int to);

}  // namespace qvit
