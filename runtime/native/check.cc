#include "check.h"

#include <cmath>

#include "check_ops.h"

namespace qvit {

const char* kind_name(Kind kind) {
  static const char* const names[] = {"Quantize",
                                      "Patchify",
                                      "Linear",
                                      "SplitHeads",
                                      "MergeHeads",
                                      "QueryKey",
                                      "Softmax",
                                      "AttentionValue",
                                      "LayerNorm",
                                      "Gelu",
                                      "Add",
                                      "Multiply",
                                      "Tokens",
                                      "WindowPartition",
                                      "WindowMerge",
                                      "PatchMerge",
                                      "SelectToken",
                                      "MeanTokens",
                                      "Dequantize",
                                      "QuantizeRegions",
                                      "LinearAccumulate",
                                      "QueryKeyAccumulate",
                                      "AttentionValueAccumulate",
                                      "Requantize",
                                      "AddRequantize",
                                      "IntegerTokens",
                                      "SumTokens",
                                      "IntegerLayerNorm",
                                      "ShiftGelu",
                                      "Shiftmax",
                                      "LogIntSoftmax",
                                      "ShiftAttentionValue"};
  static_assert(sizeof(names) / sizeof(names[0]) == kKinds);
  return names[static_cast<int>(kind)];
}

namespace {

using Shape = std::vector<int64_t>;

void check_shape(const Shape& shape, const std::string& where) {
  need(!shape.empty() && shape.size() <= 5, where, "needs 1 to 5 axes");
  int64_t elements = 1;
  for (int64_t size : shape) {
    need(size >= 1 && size <= kMaxElements, where, "has an axis that is empty or too long");
    elements *= size;
    need(elements <= kMaxElements, where, "is too large");
  }
}

void check_grid(const Buffer& buffer, const std::string& where) {
  const Grid& grid = *buffer.grid;
  need(!grid.bits.empty(), where, "has a grid without groups");
  need(grid.scale.size() == grid.bits.size() && grid.offset.size() == grid.bits.size(), where,
       "has a grid whose bits, scales and offsets differ in number");
  need(grid.axis >= 0 && grid.axis < buffer.rank(), where, "has a grid on an axis it lacks");
  need(buffer.shape[grid.axis] % grid.groups() == 0, where, "does not divide into equal groups");
  const bool regions = !grid.is_signed && grid.groups() == 2;  // of two-scaled codes may have a single bit
  for (int g = 0; g < grid.groups(); ++g) {
    need(grid.wide() ? grid.bits[g] == grid.bits[0] && (grid.bits[g] == 16 || grid.bits[g] == 32)
                     : grid.bits[g] >= (regions ? 1 : 2) && grid.bits[g] <= 8,
         where, "has a grid of other than 2 to 8 bits, all 16 or all 32");
    need(std::isfinite(grid.scale[g]) && grid.scale[g] > 0.0f, where, "has a scale that is not positive and finite");
    need(std::isfinite(grid.offset[g]), where, "has an offset that is not finite");
    need(!grid.wide() || grid.is_signed, where, "has wide codes without a sign");
    need(!grid.is_signed || grid.offset[g] == 0.0f, where, "has an offset on a signed grid");
  }
}

void check_weight(const Weight& w, const std::string& where) {
  check_shape({w.out, w.in}, where);
  need(w.in <= kMaxInputs, where, "has more inputs than 32-bit sums can hold");
  need(static_cast<int64_t>(w.codes.size()) == w.out * w.in, where, "has codes of another size");
  need(w.row_groups >= 1 && w.column_groups >= 1 && w.out % w.row_groups == 0 && w.in % w.column_groups == 0, where,
       "does not divide into equal groups");
  const size_t groups = static_cast<size_t>(w.row_groups) * w.column_groups;
  need(w.bits.size() == groups && w.scale.size() == groups, where, "has bits or scales of another number than groups");
  for (size_t g = 0; g < groups; ++g) {
    need(w.bits[g] >= 2 && w.bits[g] <= 8, where, "has a group of other than 2 to 8 bits");
    need(std::isfinite(w.scale[g]) && w.scale[g] > 0.0f, where, "has a scale that is not positive and finite");
  }
  const int64_t rows = w.out / w.row_groups, columns = w.in / w.column_groups;
  for (int64_t o = 0; o < w.out; ++o) {
    for (int64_t i = 0; i < w.in; ++i) {
      const int bits = w.bits[(o / rows) * w.column_groups + i / columns];
      const int code = w.codes[o * w.in + i];
      need(code >= -(1 << (bits - 1)) && code < (1 << (bits - 1)), where, "has a code outside its bits");
    }
  }
}

// Constants and integers may be empty.
void check_array(const Shape& shape, size_t size, const std::string& where) {
  int64_t elements = 1;
  need(!shape.empty() && shape.size() <= 5, where, "needs 1 to 5 axes");
  for (int64_t length : shape) {
    need(length >= 0 && length <= kMaxElements, where, "has a size out of range");
    elements *= length;
    need(elements <= kMaxElements, where, "is too large");
  }
  need(static_cast<int64_t>(size) == elements, where, "has data of another size");
}

}  // namespace

void check(const Program& program) {
  const int buffers = static_cast<int>(program.buffers.size());
  auto exists = [&](int b) { return b >= 0 && b < buffers; };
  for (int i = 0; i < buffers; ++i) {
    const std::string where = "buffer " + std::to_string(i);
    check_shape(program.buffers[i].shape, where);
    if (program.buffers[i].grid) check_grid(program.buffers[i], where);
  }
  for (size_t i = 0; i < program.weights.size(); ++i) check_weight(program.weights[i], "weight " + std::to_string(i));
  for (size_t i = 0; i < program.constants.size(); ++i) {
    const Constant& c = program.constants[i];
    const std::string where = "constant " + std::to_string(i);
    check_array(c.shape, c.data.size(), where);
    for (float v : c.data) need(std::isfinite(v), where, "holds a number that is not finite");
  }
  for (size_t i = 0; i < program.integers.size(); ++i) {
    check_array(program.integers[i].shape, program.integers[i].data.size(), "integers " + std::to_string(i));
  }
  std::vector<bool> written(buffers, false);
  need(!program.inputs.empty() && !program.outputs.empty(), "program", "has no input or no output");
  for (int b : program.inputs) {
    need(exists(b) && !written[b], "program", "has an input that does not exist or is listed twice");
    written[b] = true;
  }
  for (size_t i = 0; i < program.ops.size(); ++i) {
    const Op& op = program.ops[i];
    const std::string where = "op " + std::to_string(i) + " (" + kind_name(op.kind) + ")";
    for (int b : op.inputs) need(exists(b) && written[b], where, "reads a buffer that nothing has written");
    need(exists(op.output) && !written[op.output], where, "writes a buffer that is missing or already written");
    check_op(program, op, where);
    written[op.output] = true;
  }
  for (int b : program.outputs) need(exists(b) && written[b], "program", "has an output that nothing writes");
}

}  // namespace qvit
