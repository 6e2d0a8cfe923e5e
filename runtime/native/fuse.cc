// From ops to steps: neighbours that need not write their result to memory become one step.
//
//   Linear -> (Multiply) -> (Gelu) -> Quantize                     codes straight from the epilogue
//   Linear -> (Multiply) -> Add                                    the residual stream
//   Linear -> SplitHeads x parts -> Quantize x parts               one code matrix; heads are columns of it
//   LayerNorm -> Quantize
//   QueryKey -> Softmax -> Quantize -> AttentionValue -> (Quantize -> MergeHeads)        one head's rows at a time
//
// A chain is followed while its buffer has exactly one reader and is no output of the program; where that fails, or for
// any other order of ops, each op has a step of its own. Fused ops run at the place of their first op, which only moves
// them forward; an Add waits until both sides exist.
#include <algorithm>
#include <string>

#include "plan.h"
#include "step_attention.h"
#include "step_linear.h"
#include "step_move.h"
#include "step_rows.h"

namespace qvit {
namespace {

class Planner {
 public:
  Planner(const Program& program, bool fuse, Plan& plan)
      : program_(program),
        fuse_(fuse),
        plan_(plan),
        readers_(program.buffers.size()),
        done_(program.ops.size()),
        storage_(program.buffers.size(), -1),
        place_(program.buffers.size()) {
    for (size_t i = 0; i < program.ops.size(); ++i) {
      for (int b : program.ops[i].inputs) readers_[b].push_back(static_cast<int>(i));
    }
    for (int b : program.outputs) readers_[b].push_back(-1);
    for (int b : program.inputs) plan_.inputs.push_back({program.buffers[b], own_storage(b), std::nullopt});
  }

  void run() {
    for (size_t i = 0; i < program_.ops.size(); ++i) {
      if (!done_[i]) step_for(static_cast<int>(i));
    }
    for (int b : program_.outputs) plan_.outputs.push_back({program_.buffers[b], storage_[b], place_[b]});
  }

 private:
  const Op& op(int i) const { return program_.ops[i]; }
  const Buffer& buffer(int b) const { return program_.buffers[b]; }
  const Constant* constant(int t) const { return t < 0 ? nullptr : &program_.constants[t]; }
  const Kernels& kernels() const { return *plan_.kernels; }

  // Storages.
  int add_storage(int64_t bytes) {
    plan_.storages.push_back({round_up(bytes + kSlack, 64)});
    return static_cast<int>(plan_.storages.size()) - 1;
  }
  int own_storage(int b) {
    storage_[b] = add_storage(buffer(b).elements() * (buffer(b).grid ? 1 : static_cast<int64_t>(sizeof(float))));
    return storage_[b];
  }

  // Chains.
  // The only reader of a buffer if it is an op of this kind, else -1.
  int next(int b, Kind kind) const {
    if (!fuse_ || readers_[b].size() != 1 || readers_[b][0] < 0) return -1;
    const int reader = readers_[b][0];
    return !done_[reader] && op(reader).kind == kind ? reader : -1;
  }

  void emit(std::unique_ptr<Step> step, const std::vector<int>& ops) {
    for (int i : ops) {
      done_[i] = true;
      if (!step->name.empty()) step->name += '+';
      step->name += kind_name(op(i).kind);
    }
    step->ops = ops;
    plan_.steps.push_back(std::move(step));
  }

  static bool along_columns(const Buffer& b) { return b.grid->groups() == 1 || b.grid->axis == b.rank() - 1; }
  ColumnGrid column_grid(int b) const {
    const Buffer& out = buffer(b);
    ColumnGrid grid(out.last());
    for (int64_t c = 0; c < out.last(); ++c)
      grid.fill(c, *out.grid, static_cast<int>(c * out.grid->groups() / out.last()));
    return grid;
  }

  void step_for(int i) {
    const Op& o = op(i);
    switch (o.kind) {
      case Kind::kLinear: return linear(i);
      case Kind::kLayerNorm: return layer_norm(i);
      case Kind::kQueryKey: return query_key(i);
      case Kind::kAttentionValue: return attention_value(i);
      default: break;
    }
    const int from = storage_[o.inputs[0]], to = own_storage(o.output);
    const Buffer &in = buffer(o.inputs[0]), &out = buffer(o.output);
    switch (o.kind) {
      case Kind::kQuantize: return emit(make_quantize(kernels(), out, from, to), {i});
      case Kind::kPatchify: return emit(make_patchify(in, o.integers[0], from, to), {i});
      case Kind::kSplitHeads: return emit(make_split_heads(in, out, o.integers[0], from, to), {i});
      case Kind::kMergeHeads: return emit(make_merge_heads(in, from, to), {i});
      case Kind::kSoftmax:
        return emit(make_softmax(kernels(), out, constant(o.tensors[0]), constant(o.tensors[1]), from, to), {i});
      case Kind::kGelu: return emit(make_gelu(kernels(), out, from, to), {i});
      case Kind::kAdd: return emit(make_add(out, from, storage_[o.inputs[1]], to), {i});
      case Kind::kMultiply: return emit(make_multiply(out, *constant(o.tensors[0]), from, to), {i});
      case Kind::kTokens:
        return emit(make_tokens(out, *constant(o.tensors[0]), *constant(o.tensors[1]), from, to), {i});
      case Kind::kWindowPartition:
      case Kind::kWindowMerge: {
        const Windowing w = {{o.integers[0], o.integers[1]}, {o.integers[2], o.integers[3]}};
        return emit(o.kind == Kind::kWindowPartition ? make_window_partition(in, w, from, to)
                                                     : make_window_merge(out, w, from, to),
                    {i});
      }
      case Kind::kPatchMerge: return emit(make_patch_merge(in, from, to), {i});
      case Kind::kSelectToken: return emit(make_select_token(in, o.integers[0], from, to), {i});
      case Kind::kMeanTokens: return emit(make_mean_tokens(in, o.integers[0], from, to), {i});
      default: throw ProgramError("op " + std::to_string(i) + ": has no step");
    }
  }

  void layer_norm(int i) {
    const Op& o = op(i);
    std::vector<int> ops = {i};
    int result = o.output;
    const int quantize = next(result, Kind::kQuantize);
    std::optional<ColumnGrid> grid;
    if (quantize >= 0 && along_columns(buffer(op(quantize).output))) {
      result = op(quantize).output;
      grid = column_grid(result);
      ops.push_back(quantize);
    }
    const int from = storage_[o.inputs[0]], to = own_storage(result);
    emit(make_layer_norm(kernels(), buffer(o.output), *constant(o.tensors[0]), *constant(o.tensors[1]), o.reals[0],
                         grid ? &*grid : nullptr, from, to),
         ops);
  }

  void linear(int i) {
    const Op& o = op(i);
    LinearParts parts{};
    parts.weight = &program_.weights[o.tensors[0]];
    parts.bias = &constant(o.tensors[1])->data;
    parts.input_grid = &*buffer(o.inputs[0]).grid;
    parts.rows = buffer(o.output).rows();
    parts.input = storage_[o.inputs[0]];
    if (split_heads(i, parts)) return;

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
      if (quantize >= 0 && along_columns(buffer(op(quantize).output))) grid = column_grid(op(quantize).output);
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
  bool split_heads(int i, LinearParts& parts) {
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
      for (int user : readers_[b]) {
        if (user < 0) continue;  // the caller: copied out of its columns
        if (op(user).kind != Kind::kQueryKey && op(user).kind != Kind::kAttentionValue) return false;
        if (op(user).kind == Kind::kAttentionValue && op(user).inputs[0] == b) return false;  // read as a dense map
      }
      const int64_t heads = part.shape[part.rank() - 3], dim = part.last(),
                    first = op(reader).integers[0] * heads * dim;
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
      const Buffer& part = buffer(b);
      const int64_t tokens = part.shape[part.rank() - 2], dim = part.last(), heads = part.shape[part.rank() - 3];
      const int64_t first = op(ops[1 + 2 * n]).integers[0] * heads * dim;
      storage_[b] = parts.output;
      place_[b] = HeadPlace{parts.output, first, tokens * columns, dim, columns};
    }
    emit(make_linear(kernels(), parts), ops);
    return true;
  }

  HeadPlace heads_at(int b) const {
    if (place_[b]) return *place_[b];
    const Buffer& x = buffer(b);
    return dense_heads(storage_[b], x.shape[x.rank() - 3], x.shape[x.rank() - 2], x.last());
  }

  static HeadShape head_shape(const Buffer& query, int64_t keys, int64_t width) {
    const int r = query.rank();
    return {r == 4 ? query.shape[0] : 1, query.shape[r - 3], query.shape[r - 2], keys, width};
  }

  // What to pack of buffer `right`, the second operand of a product with `left`.
  PackParts to_pack(const HeadShape& shape, bool values, int left, int right) {
    const int64_t head = values ? packed_bytes(shape.keys, shape.width) : packed_bytes(shape.width, shape.keys);
    const int to = add_storage(head * shape.windows * shape.heads);
    return {values, &*buffer(left).grid, &*buffer(right).grid, heads_at(right), to};
  }
  void pack(const HeadShape& shape, const std::vector<PackParts>& operands) {
    auto step = make_pack(kernels(), shape, operands);
    step->name = operands.size() == 2 ? "pack keys and values" : operands[0].values ? "pack values" : "pack keys";
    plan_.steps.push_back(std::move(step));
  }

  static bool head_steps_fit(const AttentionParts& parts, const Grid& out) {
    auto largest = [](const std::vector<float>& v) {
      return static_cast<double>(*std::max_element(v.begin(), v.end()));
    };
    ColumnGrid grid(out.groups());
    for (int g = 0; g < out.groups(); ++g) grid.fill(g, out, g);
    return grid.fits(static_cast<double>(parts.shape.keys) * kLargestProduct * largest(parts.attention_grid->scale) *
                     largest(parts.value_grid->scale));
  }

  // The output of an AttentionValue op, with the Quantize and MergeHeads behind it if they can be had.
  void value_output(int i, AttentionParts& parts, std::vector<int>& ops) {
    int result = op(i).output;
    const int quantize = next(result, Kind::kQuantize);
    if (quantize >= 0) {
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

  void query_key(int i) {
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

  void attention_value(int i) {
    const Op& o = op(i);
    const Buffer &attention = buffer(o.inputs[0]), &value = buffer(o.inputs[1]);
    AttentionParts parts{};
    parts.shape = head_shape(attention, attention.last(), value.last());
    parts.attention_grid = &*attention.grid;
    parts.value_grid = &*value.grid;
    std::vector<int> ops = {i};
    const PackParts values = to_pack(parts.shape, true, o.inputs[0], o.inputs[1]);
    parts.values = values.to;
    pack(parts.shape, {values});
    value_output(i, parts, ops);
    emit(make_attention_value(kernels(), parts, storage_[o.inputs[0]]), ops);
  }

  const Program& program_;
  bool fuse_;
  Plan& plan_;
  std::vector<std::vector<int>> readers_;  // ops by buffer; -1: the caller
  std::vector<bool> done_;
  std::vector<int> storage_;  // by buffer; -1: not made (yet)
  std::vector<std::optional<HeadPlace>> place_;
};

}  // namespace

void make_steps(const Program& program, bool fuse, Plan& plan) { Planner(program, fuse, plan).run(); }

}  // namespace qvit
