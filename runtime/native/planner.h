// From ops to steps: what fuse.cc (moves and order), fuse_values.cc and fuse_integer.cc share.
//
// Neighbours that need not write their result to memory become one step. A chain is followed while its buffer has
// exactly one reader and is no output of the program; where that fails, or for any other order of ops, each op has a
// step of its own. Fused ops run at the place of their first op, which only moves them forward; an addition waits until
// both sides exist.
#pragma once

#include <optional>
#include <vector>

#include "plan.h"
#include "step_attention.h"
#include "step_integer_attention.h"
#include "step_linear.h"

namespace qvit {

// Groups that a column tells apart, or none: what an epilogue, which works by columns, can take.
inline bool along_columns(const Buffer& b) { return b.grid->groups() == 1 || b.grid->axis == b.rank() - 1; }

class Planner {
 public:
  Planner(const Program& program, bool fuse, Plan& plan);
  void run();

 private:
  const Op& op(int i) const { return program_.ops[i]; }
  const Buffer& buffer(int b) const { return program_.buffers[b]; }
  const Constant* constant(int t) const { return t < 0 ? nullptr : &program_.constants[t]; }
  const Integers* integers(int t) const { return t < 0 ? nullptr : &program_.integers[t]; }
  const Kernels& kernels() const { return *plan_.kernels; }

  // Storages, chains and heads: fuse.cc.
  int add_storage(int64_t bytes);
  int own_storage(int b);
  int next(int b, Kind kind) const;  // the only reader of a buffer if it is an op of this kind, else -1
  void emit(std::unique_ptr<Step> step, const std::vector<int>& ops);
  void name(Step& step, const std::vector<int>& ops);  // these ops are done by this step
  HeadPlace heads_at(int b) const;
  HeadShape head_shape(const Buffer& query, int64_t keys, int64_t width) const;
  bool read_in_place(int b) const;  // by attention products, which find heads anywhere
  HeadPlace part_place(const Op& split, int storage) const;
  PackParts to_pack(const HeadShape& shape, bool values, int left, int right);
  void pack(const HeadShape& shape, const std::vector<PackParts>& operands);

  void step_for(int i);
  void split_codes(int i);
  LinearOperands linear_operands(int i) const;

  // Ops on values: fuse_values.cc.
  void layer_norm(int i);
  void linear(int i);
  bool split_values(int i, LinearParts& parts);
  void value_output(int i, AttentionParts& parts, std::vector<int>& ops);
  void query_key(int i);
  void attention_value(int i);

  // Ops on integers: fuse_integer.cc.
  void integer_step_for(int i);
  void linear_accumulate(int i);
  void requantize(int i);
  void shift_gelu(int i);
  void query_key_accumulate(int i);
  void attention_value_accumulate(int i);
  void shift_attention_value(int i);
  int64_t largest_code(int b) const;
  RescaledOperand operand(int i, size_t side) const;  // of a Requantize or AddRequantize
  SumsParts sums_parts(int i, std::vector<int>& ops, int& result) const;
  HeadPlace sums_output(const SumsParts& parts, const HeadShape& shape, int result, std::vector<int>& ops,
                        bool& merged);

  const Program& program_;
  bool fuse_;
  Plan& plan_;
  std::vector<std::vector<int>> readers_;  // ops by buffer; -1: the caller
  std::vector<int> writer_;                // op by buffer; -1: the caller
  std::vector<bool> done_;
  std::vector<int> storage_;  // by buffer; -1: not made (yet)
  std::vector<std::optional<HeadPlace>> place_;
};

}  // namespace qvit
