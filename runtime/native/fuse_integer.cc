// Chains of the integer-only ops.
//
//   LinearAccumulate -> Requantize                                 codes straight from the epilogue
//   LinearAccumulate -> AddRequantize                              the residual stream
//   ShiftGelu -> Requantize                                        one table
//   QueryKeyAccumulate -> Requantize -> Shiftmax -> AttentionValueAccumulate -> (Requantize -> MergeHeads)
#include <algorithm>
#include <cstdlib>
#include <string>

#include "planner.h"
#include "step_linear_accumulate.h"

namespace qvit {
void Planner::integer_step_for(int i) {
  const Op& o = op(i);
  const Buffer &in = buffer(o.inputs[0]), &out = buffer(o.output);
  const int from = storage_[o.inputs[0]];
  switch (o.kind) {
    case Kind::kDequantize: return emit(make_dequantize(in, from, own_storage(o.output)), {i});
    case Kind::kQuantizeRegions: return emit(make_quantize_regions(kernels(), out, from, own_storage(o.output)), {i});
    case Kind::kLinearAccumulate: return linear_accumulate(i);
    case Kind::kQueryKeyAccumulate: return query_key_accumulate(i);
    case Kind::kAttentionValueAccumulate: return attention_value_accumulate(i);
    case Kind::kRequantize:
    case Kind::kAddRequantize: return requantize(i);
    case Kind::kIntegerTokens: {
      const RescaledOperand x = {&in, integers(o.tensors[2]), integers(o.tensors[3]), from, largest_code(o.inputs[0])};
      return emit(make_integer_tokens(kernels(), x, *integers(o.tensors[0]), *integers(o.tensors[1]), out,
                                      own_storage(o.output)),
                  {i});
    }
    case Kind::kSumTokens: return emit(make_sum_tokens(in, o.integers[0], from, own_storage(o.output)), {i});
    case Kind::kIntegerLayerNorm: {
      const IntegerNormParts parts = {integers(o.tensors[0]), integers(o.tensors[1]), integers(o.tensors[2]),
                                      static_cast<int>(o.integers[0]), static_cast<int>(o.integers[1])};
      return emit(make_integer_layer_norm(kernels(), in, parts, out, from, own_storage(o.output)), {i});
    }
    case Kind::kShiftGelu: return shift_gelu(i);
    case Kind::kShiftmax:
      return emit(make_shiftmax(kernels(), in, out, o.integers[0], static_cast<int>(o.integers[1]),
                                {integers(o.tensors[0]), integers(o.tensors[1])}, from, own_storage(o.output)),
                  {i});
    case Kind::kLogIntSoftmax:
      return emit(make_log_int_softmax(in, out, {o.integers[0], o.integers[1], o.integers[2]},
                                       {integers(o.tensors[0]), integers(o.tensors[1])}, from, own_storage(o.output)),
                  {i});
    case Kind::kShiftAttentionValue: return shift_attention_value(i);
    default: throw ProgramError("op " + std::to_string(i) + ": has no step");
  }
}

// No code of this buffer is larger in size: for sums far below what 32 bits could hold.
int64_t Planner::largest_code(int b) const {
  const Grid& grid = *buffer(b).grid;
  int64_t largest = 0;
  for (int g = 0; g < grid.groups(); ++g) {
    largest = std::max({largest, -int64_t{grid.qmin(g)}, int64_t{grid.qmax(g)}});
  }
  if (writer_[b] < 0) return largest;
  const Op& o = op(writer_[b]);
  switch (o.kind) {
    case Kind::kLinearAccumulate: {
      const Weight& w = program_.weights[o.tensors[0]];
      const Integers* bias = integers(o.tensors[1]);
      const int64_t input = largest_code(o.inputs[0]);
      int64_t sums = 0;
      for (int64_t row = 0; row < w.out; ++row) {
        int64_t total = bias != nullptr ? std::llabs(bias->data[row]) : 0;
        for (int64_t k = 0; k < w.in; ++k) total += std::abs(w.codes[row * w.in + k]) * input;
        sums = std::max(sums, total);
      }
      return sums;
    }
    case Kind::kQueryKeyAccumulate:
    case Kind::kAttentionValueAccumulate:
      return buffer(o.inputs[0]).last() * largest_code(o.inputs[0]) * largest_code(o.inputs[1]);
    case Kind::kSplitHeads:
    case Kind::kMergeHeads:
    case Kind::kWindowPartition:
    case Kind::kWindowMerge:
    case Kind::kPatchMerge:
    case Kind::kSelectToken: return largest_code(o.inputs[0]);
    default: return largest;
  }
}

RescaledOperand Planner::operand(int i, size_t side) const {
  const Op& o = op(i);
  const int b = o.inputs[side];
  return {&buffer(b), integers(o.tensors[2 * side]), integers(o.tensors[2 * side + 1]), storage_[b], largest_code(b)};
}

void Planner::linear_accumulate(int i) {
  const Op& o = op(i);
  LinearAccumulateParts parts{};
  parts.operands = linear_operands(i);
  parts.bias = integers(o.tensors[1]);
  parts.sums = &buffer(o.output);
  std::vector<int> ops = {i};
  int result = o.output;
  const int requantize = next(result, Kind::kRequantize), add = next(result, Kind::kAddRequantize);
  if (requantize >= 0 && along_columns(buffer(op(requantize).output)) && operand(requantize, 0).small()) {
    parts.multiplier = integers(op(requantize).tensors[0]);
    parts.shift = integers(op(requantize).tensors[1]);
    ops.push_back(requantize);
  } else if (add >= 0 && along_columns(buffer(op(add).output)) && operand(add, 0).small() && operand(add, 1).small()) {
    const Op& a = op(add);
    const size_t mine = a.inputs[0] == result ? 0 : 1, theirs = 1 - mine;
    const int other = a.inputs[theirs];
    if (storage_[other] >= 0 && !buffer(other).narrow() && along_columns(buffer(other))) {
      parts.multiplier = integers(a.tensors[2 * mine]);
      parts.shift = integers(a.tensors[2 * mine + 1]);
      parts.residual = &buffer(other);
      parts.residual_multiplier = integers(a.tensors[2 * theirs]);
      parts.residual_shift = integers(a.tensors[2 * theirs + 1]);
      parts.residual_storage = storage_[other];
      ops.push_back(add);
    }
  }
  if (ops.size() > 1) {
    result = op(ops.back()).output;
    parts.requantized = &buffer(result);
  }
  parts.output = own_storage(result);
  emit(make_linear_accumulate(kernels(), parts), ops);
}

void Planner::requantize(int i) {
  const Op& o = op(i);
  const RescaledOperand right = o.kind == Kind::kAddRequantize ? operand(i, 1) : RescaledOperand{};
  emit(make_requantize(kernels(), operand(i, 0), right, buffer(o.output), own_storage(o.output)), {i});
}

void Planner::shift_gelu(int i) {
  const Op& o = op(i);
  ShiftGeluParts parts = {o.integers[0], static_cast<int>(o.integers[1]), nullptr, nullptr, nullptr};
  std::vector<int> ops = {i};
  int result = o.output;
  const int requantize = next(result, Kind::kRequantize);
  if (requantize >= 0 && buffer(op(requantize).output).narrow() && buffer(op(requantize).output).grid->groups() == 1) {
    result = op(requantize).output;
    parts.requantized = &buffer(result);
    parts.multiplier = integers(op(requantize).tensors[0]);
    parts.shift = integers(op(requantize).tensors[1]);
    ops.push_back(requantize);
  }
  emit(make_shift_gelu(buffer(o.inputs[0]), parts, storage_[o.inputs[0]], own_storage(result)), ops);
}

// A product of heads, with the Requantize behind it if it can be had: `ops` and `result` go along.
SumsParts Planner::sums_parts(int i, std::vector<int>& ops, int& result) const {
  const Op& o = op(i);
  SumsParts parts = {&*buffer(o.inputs[0]).grid, &*buffer(o.inputs[1]).grid, &buffer(o.output)};
  ops.push_back(i);
  result = o.output;
  const int requantize = next(result, Kind::kRequantize);
  if (requantize >= 0 && head_rows_share_group(buffer(op(requantize).output)) && operand(requantize, 0).small()) {
    result = op(requantize).output;
    parts.requantized = &buffer(result);
    parts.multiplier = integers(op(requantize).tensors[0]);
    parts.shift = integers(op(requantize).tensors[1]);
    ops.push_back(requantize);
  }
  return parts;
}

// Where the result of AttentionValueAccumulate goes: its own heads, or their columns of merged ones.
HeadPlace Planner::sums_output(const SumsParts& parts, const HeadShape& shape, int result, std::vector<int>& ops,
                               bool& merged) {
  const int merge = parts.requantized != nullptr ? next(result, Kind::kMergeHeads) : -1;
  merged = merge >= 0;
  if (!merged) return dense_heads(own_storage(result), shape.heads, shape.tokens, shape.width);
  ops.push_back(merge);
  const int64_t columns = shape.heads * shape.width;
  return {own_storage(op(merge).output), 0, shape.tokens * columns, shape.width, columns};
}

void Planner::query_key_accumulate(int i) {
  const Op& o = op(i);
  const Buffer &query = buffer(o.inputs[0]), &key = buffer(o.inputs[1]);
  const HeadShape shape = head_shape(query, key.shape[key.rank() - 2], query.last());
  IntegerAttentionParts parts{};
  std::vector<int> ops;
  int scores = -1;
  parts.shape = shape;
  parts.scores = sums_parts(i, ops, scores);
  parts.query = heads_at(o.inputs[0]);
  const int softmax = parts.scores.requantized != nullptr ? next(scores, Kind::kShiftmax) : -1;
  const int product = softmax < 0 ? -1 : next(op(softmax).output, Kind::kAttentionValueAccumulate);
  const bool whole = product >= 0 && op(product).inputs[0] == op(softmax).output &&
                     storage_[op(product).inputs[1]] >= 0 && buffer(op(product).inputs[1]).last() == query.last();
  const PackParts keys = to_pack(shape, false, o.inputs[0], o.inputs[1]);
  if (!whole) {
    pack(shape, {keys});
    const HeadPlace out = dense_heads(own_storage(scores), shape.heads, shape.tokens, shape.keys);
    return emit(make_head_sums(kernels(), shape, false, parts.scores, parts.query, keys.to, out, false), ops);
  }
  const Op& s = op(softmax);
  parts.unit = s.integers[0];
  parts.fraction = static_cast<int>(s.integers[1]);
  parts.constants = {integers(s.tensors[0]), integers(s.tensors[1])};
  parts.map = &buffer(s.output);
  ops.push_back(softmax);
  int result = -1;
  parts.product = sums_parts(product, ops, result);
  const PackParts values = to_pack(shape, true, s.output, op(product).inputs[1]);
  pack(shape, {keys, values});
  parts.keys = keys.to;
  parts.values = values.to;
  parts.output = sums_output(parts.product, shape, result, ops, parts.merged);
  emit(make_integer_attention(kernels(), parts), ops);
}

void Planner::shift_attention_value(int i) {
  const Op& o = op(i);
  const Buffer &attention = buffer(o.inputs[0]), &value = buffer(o.inputs[1]);
  const HeadShape shape = head_shape(attention, attention.last(), value.last());
  const PackParts values = {true, &power_grid(), &*value.grid, heads_at(o.inputs[1]),
                            add_storage(packed_bytes(shape.keys, shape.width) * shape.windows * shape.heads)};
  pack(shape, {values});
  emit(make_shift_attention_value(kernels(), shape, attention, value, storage_[o.inputs[0]], values.to,
                                  own_storage(o.output)),
       {i});
}

void Planner::attention_value_accumulate(int i) {
  const Op& o = op(i);
  const Buffer &attention = buffer(o.inputs[0]), &value = buffer(o.inputs[1]);
  const HeadShape shape = head_shape(attention, attention.last(), value.last());
  std::vector<int> ops;
  int result = -1;
  const SumsParts parts = sums_parts(i, ops, result);
  const PackParts values = to_pack(shape, true, o.inputs[0], o.inputs[1]);
  pack(shape, {values});
  bool merged = false;
  const HeadPlace out = sums_output(parts, shape, result, ops, merged);
  const HeadPlace left = dense_heads(storage_[o.inputs[0]], shape.heads, shape.tokens, shape.keys);
  emit(make_head_sums(kernels(), shape, true, parts, left, values.to, out, merged), ops);
}

}  // namespace qvit
