// What `check` refuses, and that whatever it lets through runs.
#include <cmath>

#include "check.h"
#include "engine.h"
#include "programs.h"
#include "testing.h"

namespace qvit {
namespace {

template <typename Change>
void expect_refusal(Program program, Change change) {
  change(program);
  bool refused = false;
  try {
    check(program);
  } catch (const ProgramError&) {
    refused = true;
  }
  CHECK(refused);
}

// One random number of a program is changed. Whatever `check` lets through must run without a sanitizer's complaint.
void mutate(Program& p) {
  auto any = [](auto& list) -> auto& { return list[static_cast<size_t>(pick(0, static_cast<int>(list.size()) - 1))]; };
  auto number = [](int64_t old) { return pick(0, 2) == 0 ? int64_t{pick(-3, 70)} : old + pick(-2, 2); };
  switch (pick(0, 9)) {
    case 0: any(any(p.buffers).shape) = number(5); break;
    case 1: any(p.ops).inputs[0] = pick(-1, static_cast<int>(p.buffers.size())); break;
    case 2: any(p.ops).output = pick(-1, static_cast<int>(p.buffers.size())); break;
    case 3: {
      Op& op = any(p.ops);
      if (!op.integers.empty()) any(op.integers) = number(any(op.integers));
      if (!op.tensors.empty()) any(op.tensors) = pick(-1, 8);
      break;
    }
    case 4: any(p.ops).kind = static_cast<Kind>(pick(0, kKinds - 1)); break;
    case 5: std::swap(any(p.ops), any(p.ops)); break;
    case 6: {
      Buffer& b = any(p.buffers);
      if (!b.grid) break;
      b.grid->axis = pick(-1, 4);
      if (pick(0, 1) == 0) b.grid->bits[0] = pick(0, 3) == 0 ? 16 * pick(1, 2) : pick(0, 10);
      if (pick(0, 1) == 0) b.grid->is_signed = !b.grid->is_signed;
      if (pick(0, 1) == 0) {
        b.grid->bits.assign(static_cast<size_t>(pick(0, 4)), 4);
        b.grid->scale.assign(b.grid->bits.size(), 0.1f);
        b.grid->offset.assign(b.grid->bits.size(), 0.0f);
      }
      break;
    }
    case 7: {
      if (p.integers.empty()) break;
      Integers& integers = any(p.integers);
      const int extremes[] = {INT32_MIN, INT32_MAX, 1, 31, 62};
      any(integers.data) = extremes[pick(0, 4)];
      if (pick(0, 3) == 0) integers = {{1}, {pick(-3, 62)}};
      break;
    }
    case 8: {
      Weight& w = any(p.weights);
      w.row_groups = pick(0, 4);
      w.column_groups = pick(0, 4);
      w.bits.assign(static_cast<size_t>(w.row_groups * w.column_groups), pick(2, 8));
      w.scale.assign(w.bits.size(), 0.1f);
      break;
    }
    default: any(pick(0, 1) == 0 ? p.inputs : p.outputs) = pick(0, static_cast<int>(p.buffers.size()) - 1); break;
  }
}

Op& first(Program& p, Kind kind) {
  for (Op& op : p.ops) {
    if (op.kind == kind) return op;
  }
  return p.ops.front();
}

void check_integers() {
  const Program good = integer_program(5, 2, 4), other = log2_program(5, 2, 4);
  check(good);
  check(other);
  expect_refusal(good, [](Program& p) { p.integers[0].data.pop_back(); });
  expect_refusal(good, [](Program& p) { first(p, Kind::kRequantize).tensors[0] = 99; });
  expect_refusal(good, [](Program& p) { p.integers[first(p, Kind::kRequantize).tensors[1]].data[0] = 63; });
  expect_refusal(good, [](Program& p) { p.integers[first(p, Kind::kRequantize).tensors[0]].data[0] = INT32_MIN; });
  expect_refusal(good,
                 [](Program& p) { p.integers[first(p, Kind::kLinearAccumulate).tensors[1]].data[0] = INT32_MAX; });
  expect_refusal(good, [](Program& p) { p.buffers[first(p, Kind::kLinearAccumulate).output].grid->bits[0] = 16; });
  expect_refusal(good, [](Program& p) { p.buffers[first(p, Kind::kRequantize).output].grid->bits[0] = 32; });
  expect_refusal(good, [](Program& p) { p.buffers[first(p, Kind::kIntegerTokens).output].grid->is_signed = false; });
  expect_refusal(good, [](Program& p) { first(p, Kind::kIntegerLayerNorm).integers[0] = 8; });
  expect_refusal(good, [](Program& p) { first(p, Kind::kIntegerLayerNorm).integers[1] = 1 << 16; });
  expect_refusal(good, [](Program& p) { first(p, Kind::kShiftmax).integers[1] = 30; });
  expect_refusal(good, [](Program& p) { p.integers[first(p, Kind::kShiftmax).tensors[0]].data[0] = 1 << 29; });
  expect_refusal(good, [](Program& p) { first(p, Kind::kShiftGelu).integers[0] = 0; });
  expect_refusal(good, [](Program& p) { first(p, Kind::kSumTokens).integers[0] = 7; });
  expect_refusal(good, [](Program& p) { first(p, Kind::kSplitHeads).integers[0] = 3; });
  expect_refusal(other, [](Program& p) { first(p, Kind::kLogIntSoftmax).integers[2] = 10; });
  expect_refusal(other, [](Program& p) { first(p, Kind::kLogIntSoftmax).integers[1] = 20; });
  expect_refusal(other, [](Program& p) { p.integers[first(p, Kind::kIntegerLayerNorm).tensors[2]].data[0] = 9; });
  expect_refusal(other, [](Program& p) { p.buffers[first(p, Kind::kQuantizeRegions).output].grid->is_signed = true; });
}

}  // namespace

void test_check() {
  check(block_program(5, 2, 4, 4));
  expect_refusal(block_program(5, 2, 4, 4), [](Program& p) { p.ops[0].inputs[0] = 99; });
  expect_refusal(block_program(5, 2, 4, 4), [](Program& p) { p.ops[0].output = -1; });
  expect_refusal(block_program(5, 2, 4, 4), [](Program& p) { p.ops[2].tensors[0] = 7; });
  expect_refusal(block_program(5, 2, 4, 4), [](Program& p) { p.ops.erase(p.ops.begin()); });
  expect_refusal(block_program(5, 2, 4, 4), [](Program& p) { p.buffers[1].shape[0] = 6; });
  expect_refusal(block_program(5, 2, 4, 4),
                 [](Program& p) { p.buffers[0].shape = {int64_t{1} << 40, int64_t{1} << 40}; });
  expect_refusal(block_program(5, 2, 4, 4), [](Program& p) { p.buffers[2].grid->bits[0] = 9; });
  expect_refusal(block_program(5, 2, 4, 4), [](Program& p) { p.buffers[2].grid->scale[0] = NAN; });
  expect_refusal(block_program(5, 2, 4, 4), [](Program& p) { p.buffers[2].grid->axis = 5; });
  expect_refusal(block_program(5, 2, 4, 4), [](Program& p) { p.weights[0].codes[3] = 100; });
  expect_refusal(block_program(5, 2, 4, 4), [](Program& p) { p.weights[0].codes.pop_back(); });
  expect_refusal(block_program(5, 2, 4, 4), [](Program& p) { p.weights[0].row_groups = 5; });
  expect_refusal(block_program(5, 2, 4, 4), [](Program& p) { p.constants[0].data[0] = INFINITY; });
  expect_refusal(block_program(5, 2, 4, 4), [](Program& p) { p.ops[3].integers[0] = 3; });
  expect_refusal(block_program(5, 2, 4, 4), [](Program& p) { p.outputs = {50}; });
  check(long_product(33025, false, false));
  expect_refusal(long_product(33026, false, false), [](Program&) {});
  expect_refusal(long_product(65537, true, true), [](Program&) {});
  expect_refusal(long_product(1, false, false), [](Program& p) {  // as many keys and values of one channel
    p.buffers[0].shape[2] = p.buffers[1].shape[1] = 33026;
    p.ops[0] = {Kind::kAttentionValue, {0, 1}, 2, {}, {}, {}};
  });
  check_integers();
}

void test_mutants() {
  int ran = 0;
  for (int turn = 0; turn < 6000; ++turn) {
    const int tokens = pick(1, 9);
    Program program = turn % 3 == 0   ? block_program(tokens, 2, 4, 4)
                      : turn % 3 == 1 ? integer_program(tokens, 2, 4)
                                      : log2_program(tokens, 2, 4);
    for (int i = pick(1, 3); i > 0; --i) mutate(program);
    try {
      Engine engine(program, choose_kernels(""), 2, turn % 2 == 0);
      std::vector<std::vector<float>> arrays;  // large enough for codes too
      std::vector<const void*> inputs;
      std::vector<void*> outputs;
      for (const Port& port : engine.plan().inputs) {
        inputs.push_back(arrays.emplace_back(static_cast<size_t>(3 * port.buffer.elements()), 1.5f).data());
      }
      for (const Port& port : engine.plan().outputs) {
        outputs.push_back(arrays.emplace_back(static_cast<size_t>(3 * port.buffer.elements())).data());
      }
      engine.run(3, inputs, outputs, nullptr);
      ++ran;
    } catch (const ProgramError&) {
    }
  }
  CHECK(ran > 100 && ran < 5900);
}

}  // namespace qvit
