// The planner: ops in order, each to its step. Chains are in fuse_values.cc and fuse_integer.cc.
#include <algorithm>
#include <string>

#include "planner.h"
#include "step_move.h"
#include "step_rows.h"

namespace qvit {

Planner::Planner(const Program& program, bool fuse, Plan& plan)
    : program_(program),
      fuse_(fuse),
      plan_(plan),
      readers_(program.buffers.size()),
      writer_(program.buffers.size(), -1),
      done_(program.ops.size()),
      storage_(program.buffers.size(), -1),
      place_(program.buffers.size()) {
  for (size_t i = 0; i < program.ops.size(); ++i) {
    for (int b : program.ops[i].inputs) readers_[b].push_back(static_cast<int>(i));
    writer_[program.ops[i].output] = static_cast<int>(i);
  }
  for (int b : program.outputs) readers_[b].push_back(-1);
  for (int b : program.inputs) plan_.inputs.push_back({program.buffers[b], own_storage(b), std::nullopt});
}

void Planner::run() {
  for (size_t i = 0; i < program_.ops.size(); ++i) {
    if (!done_[i]) step_for(static_cast<int>(i));
  }
  for (int b : program_.outputs) plan_.outputs.push_back({program_.buffers[b], storage_[b], place_[b]});
}

// Storages.
int Planner::add_storage(int64_t bytes) {
  plan_.storages.push_back({round_up(bytes + kSlack, 64)});
  return static_cast<int>(plan_.storages.size()) - 1;
}
int Planner::own_storage(int b) {
  storage_[b] = add_storage(buffer(b).elements() * buffer(b).element_bytes());
  return storage_[b];
}

// Chains.
int Planner::next(int b, Kind kind) const {
  if (!fuse_ || readers_[b].size() != 1 || readers_[b][0] < 0) return -1;
  const int reader = readers_[b][0];
  return !done_[reader] && op(reader).kind == kind ? reader : -1;
}

void Planner::name(Step& step, const std::vector<int>& ops) {
  for (int i : ops) {
    done_[i] = true;
    if (!step.name.empty()) step.name += '+';
    step.name += kind_name(op(i).kind);
    step.ops.push_back(i);
  }
}

void Planner::emit(std::unique_ptr<Step> step, const std::vector<int>& ops) {
  name(*step, ops);
  plan_.steps.push_back(std::move(step));
}

// Heads.
HeadPlace Planner::heads_at(int b) const {
  if (place_[b]) return *place_[b];
  const Buffer& x = buffer(b);
  return dense_heads(storage_[b], x.shape[x.rank() - 3], x.shape[x.rank() - 2], x.last());
}

HeadShape Planner::head_shape(const Buffer& query, int64_t keys, int64_t width) const {
  const int r = query.rank();
  return {r == 4 ? query.shape[0] : 1, query.shape[r - 3], query.shape[r - 2], keys, width};
}

bool Planner::read_in_place(int b) const {
  for (int user : readers_[b]) {
    if (user < 0) continue;  // the caller: copied out of its columns
    switch (op(user).kind) {
      case Kind::kQueryKey:
      case Kind::kQueryKeyAccumulate: break;
      case Kind::kAttentionValue:
      case Kind::kAttentionValueAccumulate:
      case Kind::kShiftAttentionValue:
        if (op(user).inputs[0] == b) return false;  // read as a dense map
        break;
      default: return false;
    }
  }
  return true;
}

// Where a part of the heads lies among the columns of what a SplitHeads op reads.
HeadPlace Planner::part_place(const Op& split, int storage) const {
  const Buffer& part = buffer(split.output);
  const int r = part.rank();
  const int64_t heads = part.shape[r - 3], tokens = part.shape[r - 2], dim = part.last();
  const int64_t columns = buffer(split.inputs[0]).last();
  return {storage, split.integers[0] * heads * dim, tokens * columns, dim, columns};
}

// What to pack of buffer `right`, the second operand of a product with `left`.
PackParts Planner::to_pack(const HeadShape& shape, bool values, int left, int right) {
  const int64_t head = values ? packed_bytes(shape.keys, shape.width) : packed_bytes(shape.width, shape.keys);
  const int to = add_storage(head * shape.windows * shape.heads);
  return {values, &*buffer(left).grid, &*buffer(right).grid, heads_at(right), to};
}
void Planner::pack(const HeadShape& shape, const std::vector<PackParts>& operands) {
  auto step = make_pack(kernels(), shape, operands);
  step->name = operands.size() == 2 ? "pack keys and values" : operands[0].values ? "pack values" : "pack keys";
  plan_.steps.push_back(std::move(step));
}

LinearOperands Planner::linear_operands(int i) const {
  const Op& o = op(i);
  const Buffer& in = buffer(o.inputs[0]);
  const Weight& weight = program_.weights[o.tensors[0]];
  return {&weight, &*in.grid, in.rows(), static_cast<int>(in.last() / weight.in), storage_[o.inputs[0]]};
}

// Heads of codes that only attention products read stay where they are, columns of a matrix.
void Planner::split_codes(int i) {
  const Op& o = op(i);
  const int from = storage_[o.inputs[0]];
  const auto writer = std::find_if(plan_.steps.rbegin(), plan_.steps.rend(), [&](const auto& step) {
    return std::find(step->writes.begin(), step->writes.end(), from) != step->writes.end();
  });
  if (fuse_ && buffer(o.output).narrow() && read_in_place(o.output) && writer != plan_.steps.rend()) {
    storage_[o.output] = from;
    place_[o.output] = part_place(o, from);
    return name(**writer, {i});
  }
  emit(make_split_heads(buffer(o.inputs[0]), buffer(o.output), o.integers[0], from, own_storage(o.output)), {i});
}

void Planner::step_for(int i) {
  const Op& o = op(i);
  switch (o.kind) {
    case Kind::kLinear: return linear(i);
    case Kind::kLayerNorm: return layer_norm(i);
    case Kind::kQueryKey: return query_key(i);
    case Kind::kAttentionValue: return attention_value(i);
    case Kind::kSplitHeads: return split_codes(i);
    default: break;
  }
  if (o.kind >= Kind::kDequantize) return integer_step_for(i);
  const int from = storage_[o.inputs[0]], to = own_storage(o.output);
  const Buffer &in = buffer(o.inputs[0]), &out = buffer(o.output);
  switch (o.kind) {
    case Kind::kQuantize: return emit(make_quantize(kernels(), out, from, to), {i});
    case Kind::kPatchify: return emit(make_patchify(in, o.integers[0], from, to), {i});
    case Kind::kMergeHeads: return emit(make_merge_heads(in, from, to), {i});
    case Kind::kSoftmax:
      return emit(make_softmax(kernels(), out, constant(o.tensors[0]), constant(o.tensors[1]), from, to), {i});
    case Kind::kGelu: return emit(make_gelu(kernels(), out, from, to), {i});
    case Kind::kAdd: return emit(make_add(out, from, storage_[o.inputs[1]], to), {i});
    case Kind::kMultiply: return emit(make_multiply(out, *constant(o.tensors[0]), from, to), {i});
    case Kind::kTokens: return emit(make_tokens(out, *constant(o.tensors[0]), *constant(o.tensors[1]), from, to), {i});
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

void make_steps(const Program& program, bool fuse, Plan& plan) { Planner(program, fuse, plan).run(); }

}  // namespace qvit
