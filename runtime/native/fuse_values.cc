// Chains of ops on values.
//
//   Linear -> (Multiply) -> (Gelu) -> Quantize                     codes straight from the epilogue
//   Linear -> (Multiply) -> Add                                    the residual stream
//   Linear -> SplitHeads x parts -> Quantize x parts               one code matrix; heads are columns of it
//   LayerNorm -> Quantize
//   QueryKey -> Softmax -> Quantize -> AttentionValue -> (Quantize -> MergeHeads)        one head's rows at a time
#include <algorithm>

#include "planner.h"
#include "step_rows.h"

namespace qvit {
namespace {

ColumnGrid column_grid(const Buffer& out) {
  ColumnGrid grid(out.last());
  for (int64_t c = 0; c < out.last(); ++c)
    grid.fill(c, *out.grid, static_cast<int>(c * out.grid->groups() / out.last()));
  return grid;
}

bool head_steps_fit(const AttentionParts& parts, const Grid& out) {
  auto largest = [](const std::vector<float>& v) { return static_cast<double>(*std::max_element(v.begin(), v.end())); };
  ColumnGrid grid(out.groups());
  for (int g = 0; g < out.groups(); ++g) grid.fill(g, out, g);
  return grid.fits(static_cast<double>(parts.shape.keys) * kLargestProduct * largest(parts.attention_grid->scale) *
                   largest(parts.value_grid->scale));
}

}  // namespace

void Planner::layer_norm(int i) {
  const Op& o = op(i);
  std::vector<int> ops = {i};
  int result = o.output;
  const int quantize = next(result, Kind::kQuantize);
  std::optional<ColumnGrid> grid;
  if (quantize >= 0 && along_columns(buffer(op(quantize).output))) {
    result = op(quantize).output;
    grid = column_grid(buffer(result));
    ops.push_back(quantize);
  }
  const int from = storage_[o.inputs[0]], to = own_storage(result);
  emit(make_layer_norm(kernels(), buffer(o.output), *constant(o.tensors[0]), *constant(o.tensors[1]), o.reals[0],
                       grid ? &*grid : nullptr, from, to),
       ops);
}

void Planner::linear(int i) {
  const Op& o = op(i);
  LinearParts parts{};
  parts.operands = linear_operands(i);
  parts.bias = &constant(o.tensors[1])->data;
  if (split_values(i, parts)) return;

  std::vector<int> ops = {i};
  int result = o.output;
  std::optional<ColumnGrid> grid;
  if (const int multiply = next(result, Kind::kMultiply); multiply >= 0) {
    parts.factor = &constant(op(multiply).tensors[0])->data;
    result = op(multiply).output;
    ops.push_back(multiply);
  }
  const int add = next(result, Kind::kAdd);
  if (add >= 0) {
    const int other = op(add).inputs[0] == result ? op(add).inputs[1] : op(add).inputs[0];
    if (other != result && storage_[other] >= 0) {
      parts.residual = storage_[other];
      result = op(add).output;
      ops.push_back(add);
    }
  } else {
    if (const int gelu = next(result, Kind::kGelu); gelu >= 0) {
      parts.gelu = true;
      result = op(gelu).output;
      ops.push_back(gelu);
    }
    const int quantize = next(result, Kind::kQuantize);
    if (quantize >= 0 && along_columns(buffer(op(quantize).output))) grid = column_grid(buffer(op(quantize).output));
    if (grid && grid->fits(largest_value(parts))) {
      result = op(quantize).output;
      parts.grid = &*grid;
      ops.push_back(quantize);
    }
  }
  parts.output = own_storage(result);
  emit(make_linear(kernels(), parts), ops);
}

// q, k and v stay columns of one code matrix when all that reads them are attention products.
bool Planner::split_values(int i, LinearParts& parts) {
  const int out = op(i).output;
  std::vector<int> ops = {i}, heads_of;
  if (!fuse_ || readers_[out].empty()) return false;
  const int64_t columns = buffer(out).last();
  ColumnGrid grid(columns);
  std::vector<bool> covered(static_cast<size_t>(columns), false);
  for (int reader : readers_[out]) {
    if (reader < 0 || op(reader).kind != Kind::kSplitHeads) return false;
    const int quantize = next(op(reader).output, Kind::kQuantize);
    if (quantize < 0) return false;
    const int b = op(quantize).output;
    const Buffer& part = buffer(b);
    if (part.grid->groups() > 1 && part.grid->axis != part.rank() - 3) return false;
    if (!read_in_place(b)) return false;
    const int64_t heads = part.shape[part.rank() - 3], dim = part.last(), first = op(reader).integers[0] * heads * dim;
    for (int64_t c = 0; c < heads * dim; ++c) {
      if (covered[first + c]) return false;
      covered[first + c] = true;
      grid.fill(first + c, *part.grid, static_cast<int>(c / dim * part.grid->groups() / heads));
    }
    heads_of.push_back(b);
    ops.push_back(reader);
    ops.push_back(quantize);
  }
  if (std::find(covered.begin(), covered.end(), false) != covered.end()) return false;
  if (!grid.fits(largest_value(parts))) return false;

  parts.grid = &grid;
  parts.output = add_storage(buffer(out).elements());
  for (size_t n = 0; n < heads_of.size(); ++n) {
    const int b = heads_of[n];
    storage_[b] = parts.output;
    place_[b] = part_place(op(ops[1 + 2 * n]), parts.output);
  }
  emit(make_linear(kernels(), parts), ops);
  return true;
}

// The output of an AttentionValue op, with the Quantize and MergeHeads behind it if they can be had.
void Planner::value_output(int i, AttentionParts& parts, std::vector<int>& ops) {
  int result = op(i).output;
  const int quantize = next(result, Kind::kQuantize);
  if (quantize >= 0 && parts.planes == 1) {
    const Buffer& out = buffer(op(quantize).output);
    if ((out.grid->groups() == 1 || out.grid->axis == out.rank() - 3) && head_steps_fit(parts, *out.grid)) {
      result = op(quantize).output;
      ops.push_back(quantize);
      parts.output_grid = &*out.grid;
      if (const int merge = next(result, Kind::kMergeHeads); merge >= 0) {
        ops.push_back(merge);
        result = op(merge).output;
        const int64_t width = parts.shape.width, columns = parts.shape.heads * width;
        parts.output = {own_storage(result), 0, parts.shape.tokens * columns, width, columns};
        return;
      }
    }
  }
  parts.output = dense_heads(own_storage(result), parts.shape.heads, parts.shape.tokens, parts.shape.width);
}

void Planner::query_key(int i) {
  const Op& o = op(i);
  const Buffer &query = buffer(o.inputs[0]), &key = buffer(o.inputs[1]);
  AttentionParts parts{};
  parts.shape = head_shape(query, key.shape[key.rank() - 2], query.last());
  parts.query_grid = &*query.grid;
  parts.key_grid = &*key.grid;
  parts.factor = o.reals[0];
  parts.query = heads_at(o.inputs[0]);
  std::vector<int> ops = {i};
  const int softmax = next(o.output, Kind::kSoftmax);
  const int quantize = softmax < 0 ? -1 : next(op(softmax).output, Kind::kQuantize);
  const int product = quantize < 0 ? -1 : next(op(quantize).output, Kind::kAttentionValue);
  const bool whole = product >= 0 && op(product).inputs[0] == op(quantize).output &&
                     storage_[op(product).inputs[1]] >= 0 && buffer(op(product).inputs[1]).last() == query.last();
  const PackParts keys = to_pack(parts.shape, false, o.inputs[0], o.inputs[1]);
  parts.keys = keys.to;
  if (!whole) {
    pack(parts.shape, {keys});
    parts.output = dense_heads(own_storage(o.output), parts.shape.heads, parts.shape.tokens, parts.shape.keys);
    return emit(make_query_key(kernels(), parts), ops);
  }
  const int attention = op(quantize).output, value = op(product).inputs[1];
  parts.bias = constant(op(softmax).tensors[0]);
  parts.mask = constant(op(softmax).tensors[1]);
  parts.attention_grid = &*buffer(attention).grid;
  parts.value_grid = &*buffer(value).grid;
  const PackParts values = to_pack(parts.shape, true, attention, value);
  parts.values = values.to;
  pack(parts.shape, {keys, values});
  ops.insert(ops.end(), {softmax, quantize, product});
  value_output(product, parts, ops);
  emit(make_attention(kernels(), parts), ops);
}

void Planner::attention_value(int i) {
  const Op& o = op(i);
  const Buffer &attention = buffer(o.inputs[0]), &value = buffer(o.inputs[1]);
  AttentionParts parts{};
  parts.shape = head_shape(attention, value.shape[value.rank() - 2], value.last());
  parts.attention_grid = &*attention.grid;
  parts.value_grid = &*value.grid;
  parts.planes = static_cast<int>(attention.last() / parts.shape.keys);
  std::vector<int> ops = {i};
  const PackParts values = to_pack(parts.shape, true, o.inputs[0], o.inputs[1]);
  parts.values = values.to;
  pack(parts.shape, {values});
  value_output(i, parts, ops);
  emit(make_attention_value(kernels(), parts, storage_[o.inputs[0]]), ops);
}

}  // namespace qvit
