// Unit tests of the native code alone, for running under sanitizers: every kernel path of this processor against the
// scalar one, on awkward sizes, misaligned pointers and extreme codes; then whole plans with several threads and
// callers. No framework: a failed check prints its line and the program exits with 1.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <thread>

#include "check.h"
#include "cpu.h"
#include "engine.h"

namespace qvit {
namespace {

int failures = 0;

#define CHECK(condition)                                                  \
  do {                                                                    \
    if (!(condition)) {                                                   \
      ++failures;                                                         \
      std::printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
    }                                                                     \
  } while (false)

std::mt19937 random_bits(1);
int pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_bits); }
float real(float scale) { return std::normal_distribution<float>(0.0f, scale)(random_bits); }

std::vector<const Kernels*> paths() {
  std::vector<const Kernels*> all;
  for (const KernelPath& path : kernel_paths()) {
    if (path.built && path.supported) all.push_back(path.kernels);
  }
  return all;
}

// One GEMM with everything it points to, `off` bytes off alignment where alignment is not promised.
struct Gemm {
  Gemm(int rows, int inputs, int columns, int blocks, int bits, int weight_bits, Epilogue epilogue, int off)
      : inputs(inputs),
        columns(columns),
        a(rows * inputs + kSlack + off),
        out(rows * columns + 1),
        residual(out.size()),
        codes(rows * columns + off + 1) {
    const int width = inputs / blocks;
    const int64_t padded = panels_of(columns) * kPanel;
    packed = Aligned<int8_t>(panels_of(columns) * blocks * quads_of(width) * kQuadBytes);
    const int top = (1 << bits) - 1, low = -(1 << (weight_bits - 1));
    for (auto& v : a) v = static_cast<uint8_t>(pick(0, 3) == 0 ? pick(0, top) : top);
    for (int o = 0; o < columns; ++o) {
      for (int k = 0; k < inputs; ++k) {
        const int block = k / width, in = k % width;
        packed[((o / kPanel) * blocks + block) * quads_of(width) * kQuadBytes + (in / kQuad) * kQuadBytes +
               (o % kPanel) * kQuad + in % kQuad] = static_cast<int8_t>(pick(0, 3) == 0 ? pick(low, -low - 1) : low);
      }
    }
    runs.assign(static_cast<size_t>(panels_of(columns) * blocks), static_cast<int16_t>(run_length(bits, weight_bits)));
    correction.assign(static_cast<size_t>(padded * blocks), 0);
    scale.assign(static_cast<size_t>(padded * blocks), epilogue == Epilogue::kValues ? 1.0f : 0.0004f);
    bias.assign(static_cast<size_t>(padded), 0.0f);
    levels.assign(static_cast<size_t>(padded), 15.0f);
    factor.assign(static_cast<size_t>(padded), 3.0f);
    shift.assign(static_cast<size_t>(padded), 0.7f);
    for (auto& c : correction) c = pick(-1000, 1000);
    for (auto& v : residual) v = real(1.0f);
    if (epilogue != Epilogue::kValues) {
      for (auto& v : bias) v = real(1.0f);
    }
    wide = Aligned<int16_t>(kChunkRows * wide_stride(inputs));
    args = GemmArgs{};
    args.a = a.data() + off;
    args.a_stride = inputs;
    args.rows = rows;
    args.b = packed.data();
    args.columns = columns;
    args.blocks = blocks;
    args.block_width = width;
    args.runs = runs.data();
    args.correction = correction.data();
    args.scale = scale.data();
    args.bias = bias.data();
    args.column_stride = padded;
    args.epilogue = epilogue;
    args.out = out.data();
    args.residual = residual.data();
    args.codes = codes.data() + off;
    args.out_stride = columns;
    args.levels = levels.data();
    args.grid_factor = factor.data();
    args.grid_shift = shift.data();
    args.chunk_rows = kChunkRows;
    args.wide = wide.data();
  }

  int inputs, columns;
  std::vector<uint8_t> a;
  std::vector<float> out, residual;
  std::vector<uint8_t> codes;
  Aligned<int8_t> packed;
  Aligned<int16_t> wide;
  std::vector<int16_t> runs;
  std::vector<int32_t> correction;
  std::vector<float> scale, bias, levels, factor, shift;
  GemmArgs args;
};

void compare_gemm(Gemm& g) {
  const bool codes = g.args.epilogue == Epilogue::kCodes || g.args.epilogue == Epilogue::kGeluCodes;
  std::fill(g.out.begin(), g.out.end(), -7.0f);
  std::fill(g.codes.begin(), g.codes.end(), uint8_t{99});
  kScalarKernels.gemm(g.args);
  const std::vector<float> out = g.out;
  const std::vector<uint8_t> bytes = g.codes;
  for (const Kernels* kernels : paths()) {
    std::fill(g.out.begin(), g.out.end(), -7.0f);  // what lies behind the last element must stay
    std::fill(g.codes.begin(), g.codes.end(), uint8_t{99});
    kernels->gemm(g.args);
    int wrong = 0;
    for (size_t i = 0; i < out.size(); ++i) {
      const bool exact = g.args.epilogue == Epilogue::kValues && g.args.blocks == 1;
      const float allowed = exact ? 0.0f : 1e-5f * (1.0f + std::fabs(out[i]));
      wrong += !codes && std::fabs(out[i] - g.out[i]) > allowed;
    }
    for (size_t i = 0; i < bytes.size(); ++i) wrong += codes && std::abs(bytes[i] - g.codes[i]) > 1;
    CHECK(wrong == 0);
    CHECK(g.out.back() == -7.0f && g.codes.back() == 99);
  }
}

void test_gemm() {
  const int sizes[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 16, 17, 31, 32, 33, 63, 64, 65};
  const Epilogue all[] = {Epilogue::kValues, Epilogue::kAdd, Epilogue::kGelu, Epilogue::kCodes, Epilogue::kGeluCodes};
  int turn = 0;
  for (int inputs : sizes) {
    for (int columns : {1, 15, 16, 17, 63, 65}) {
      for (int rows : {1, 5, 6, 7, 25}) {
        Gemm g(rows, inputs, columns, 1, 2 + turn % 7, 2 + turn / 7 % 7, all[turn % 5], turn % 4);
        compare_gemm(g);
        ++turn;
      }
    }
  }
  for (int bits = 2; bits <= 8; ++bits) {
    for (int weight_bits = 2; weight_bits <= 8; ++weight_bits) {
      Gemm g(7, 601, 33, 1, bits, weight_bits, Epilogue::kValues, 1);
      compare_gemm(g);
    }
  }
  for (int blocks : {2, 3, 5}) {
    Gemm g(13, 30, 40, blocks, 8, 8, Epilogue::kAdd, 3);
    compare_gemm(g);
  }
}

void test_rows() {
  for (int width : {1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 49, 65, 197}) {
    const int rows = 7, padded = static_cast<int>(round_up(width, kPanel));
    std::vector<float> x(rows * width), weight(width), bias(width), levels(width, 15.0f), constants(rows * width);
    for (auto* v : {&x, &weight, &bias, &constants}) {
      for (float& f : *v) f = real(2.0f);
    }
    std::vector<std::vector<float>> normal, soft, active;
    std::vector<std::vector<uint8_t>> codes;
    for (const Kernels* kernels : paths()) {
      std::vector<float> out(rows * width), scores(rows * padded), p(rows * padded), g(rows * width);
      std::vector<uint8_t> bytes(rows * width), map(rows * padded);
      kernels->layer_norm({x.data(), rows, width, weight.data(), bias.data(), 1e-6f, out.data(), nullptr, nullptr});
      kernels->layer_norm(
          {x.data(), rows, width, weight.data(), bias.data(), 1e-6f, nullptr, bytes.data(), levels.data()});
      for (int r = 0; r < rows; ++r) std::copy_n(x.data() + r * width, width, scores.data() + r * padded);
      SoftmaxArgs s{scores.data(), padded, rows, width, constants.data(), constants.data(), p.data(), nullptr,
                    padded,        0,      0,    0};
      kernels->softmax(s);
      for (int r = 0; r < rows; ++r) {
        std::copy_n(x.data() + r * width, width, scores.data() + r * padded);
        std::copy_n(p.data() + r * padded, width, p.data() + r * width);
      }
      s.codes = map.data();
      s.factor = 100.0f;
      s.levels = 15.0f;
      kernels->softmax(s);
      kernels->gelu({x.data(), g.data(), rows * width});
      p.resize(static_cast<size_t>(rows) * width);
      normal.push_back(out);
      soft.push_back(p);
      active.push_back(g);
      codes.push_back(bytes);
    }
    for (size_t path = 1; path < normal.size(); ++path) {
      for (size_t i = 0; i < x.size(); ++i) {
        CHECK(std::fabs(normal[path][i] - normal[0][i]) < 2e-5f);
        CHECK(std::fabs(soft[path][i] - soft[0][i]) < 1e-6f);
        CHECK(std::fabs(active[path][i] - active[0][i]) < 2e-6f);
        CHECK(std::abs(codes[path][i] - codes[0][i]) <= 1);
      }
    }
  }
}

void test_pack() {
  for (int rows : {1, 3, 4, 5, 16, 17, 49}) {
    for (int width : {1, 3, 16, 20, 32, 33, 64}) {
      const int stride = width + 5;
      std::vector<uint8_t> codes(static_cast<size_t>(rows * stride));
      for (auto& c : codes) c = static_cast<uint8_t>(pick(0, 255));
      for (const bool values : {false, true}) {
        const int64_t bytes =
            values ? panels_of(width) * quads_of(rows) * kQuadBytes : panels_of(rows) * quads_of(width) * kQuadBytes;
        const int64_t columns = panels_of(values ? width : rows) * kPanel;
        Aligned<int8_t> first(bytes), second(bytes);
        std::vector<int32_t> sums(static_cast<size_t>(columns)), others(sums);
        PackArgs p{codes.data(), stride, rows, width, 128, 3, first.data(), sums.data(), -8};
        values ? kScalarKernels.pack_values(p) : kScalarKernels.pack_keys(p);
        for (const Kernels* kernels : paths()) {
          std::memset(second.data(), 77, static_cast<size_t>(bytes));  // padding must be cleared
          p.packed = second.data();
          p.correction = others.data();
          values ? kernels->pack_values(p) : kernels->pack_keys(p);
          CHECK(std::memcmp(first.data(), second.data(), static_cast<size_t>(bytes)) == 0);
          const int valid = values ? width : rows;
          CHECK(std::equal(sums.begin(), sums.begin() + valid, others.begin()));
        }
      }
    }
  }
}

Grid one_grid(int bits, bool is_signed, float scale) { return {{bits}, is_signed, {scale}, {0.0f}, 0}; }

// LayerNorm -> Quantize -> qkv -> attention -> proj -> Add, as freeze emits it.
Program block_program(int tokens, int heads, int dim, int bits) {
  Program p;
  const int64_t channels = int64_t{heads} * dim;
  auto values = [&](std::vector<int64_t> shape) {
    p.buffers.push_back({std::move(shape), std::nullopt});
    return static_cast<int>(p.buffers.size()) - 1;
  };
  auto codes = [&](std::vector<int64_t> shape, bool is_signed, float scale) {
    p.buffers.push_back({std::move(shape), one_grid(bits, is_signed, scale)});
    return static_cast<int>(p.buffers.size()) - 1;
  };
  auto constant = [&](std::vector<int64_t> shape, float mean) {
    int64_t n = 1;
    for (int64_t s : shape) n *= s;
    std::vector<float> data(static_cast<size_t>(n));
    for (float& f : data) f = mean + real(0.1f);
    p.constants.push_back({std::move(shape), data});
    return static_cast<int>(p.constants.size()) - 1;
  };
  auto weight = [&](int64_t out, int64_t in) {
    std::vector<int8_t> w(static_cast<size_t>(out * in));
    for (auto& c : w) c = static_cast<int8_t>(pick(-(1 << (bits - 1)), (1 << (bits - 1)) - 1));
    p.weights.push_back({out, in, 1, 1, w, {bits}, {0.1f / static_cast<float>(1 << bits)}});
    return static_cast<int>(p.weights.size()) - 1;
  };
  const int x = values({tokens, channels}), n = values({tokens, channels}), c = codes({tokens, channels}, true, 0.3f);
  p.ops.push_back({Kind::kLayerNorm, {x}, n, {constant({channels}, 1), constant({channels}, 0)}, {}, {1e-6}});
  p.ops.push_back({Kind::kQuantize, {n}, c, {}, {}, {}});
  const int qkv = values({tokens, 3 * channels});
  p.ops.push_back({Kind::kLinear, {c}, qkv, {weight(3 * channels, channels), constant({3 * channels}, 0)}, {}, {}});
  int part[3];
  for (int i = 0; i < 3; ++i) {
    const int split = values({heads, tokens, dim});
    part[i] = codes({heads, tokens, dim}, true, 0.2f);
    p.ops.push_back({Kind::kSplitHeads, {qkv}, split, {}, {i, 3}, {}});
    p.ops.push_back({Kind::kQuantize, {split}, part[i], {}, {}, {}});
  }
  const int scores = values({heads, tokens, tokens}), soft = values({heads, tokens, tokens});
  const int map = codes({heads, tokens, tokens}, false, 0.02f);
  p.ops.push_back({Kind::kQueryKey, {part[0], part[1]}, scores, {}, {}, {0.2}});
  p.ops.push_back({Kind::kSoftmax, {scores}, soft, {-1, -1}, {}, {}});
  p.ops.push_back({Kind::kQuantize, {soft}, map, {}, {}, {}});
  const int mixed = values({heads, tokens, dim}), mixed_codes = codes({heads, tokens, dim}, true, 0.1f);
  const int merged = codes({tokens, channels}, true, 0.1f), proj = values({tokens, channels}),
            sum = values({tokens, channels});
  p.ops.push_back({Kind::kAttentionValue, {map, part[2]}, mixed, {}, {}, {}});
  p.ops.push_back({Kind::kQuantize, {mixed}, mixed_codes, {}, {}, {}});
  p.ops.push_back({Kind::kMergeHeads, {mixed_codes}, merged, {}, {}, {}});
  p.ops.push_back({Kind::kLinear, {merged}, proj, {weight(channels, channels), constant({channels}, 0)}, {}, {}});
  p.ops.push_back({Kind::kAdd, {x, proj}, sum, {}, {}, {}});
  p.inputs = {x};
  p.outputs = {sum};
  return p;
}

std::vector<float> run(Engine& engine, const std::vector<float>& images, int64_t batch) {
  std::vector<float> out(images.size());
  engine.run(batch, {images.data()}, {out.data()}, nullptr);
  return out;
}

void test_engine() {
  for (int tokens : {1, 13, 50}) {
    for (int bits : {3, 8}) {
      const Program program = block_program(tokens, 3, 20, bits);
      const int64_t batch = 5;
      std::vector<float> images(static_cast<size_t>(batch * program.buffers[0].elements()));
      for (float& f : images) f = real(1.0f);
      for (const Kernels* kernels : paths()) {
        Engine single(program, *kernels, 1, true), plain(program, *kernels, 1, false);
        const std::vector<float> expected = run(single, images, batch);
        const std::vector<float> unfused = run(plain, images, batch);
        double error = 0.0;
        for (size_t i = 0; i < expected.size(); ++i) error += std::fabs(expected[i] - unfused[i]);
        CHECK(error / static_cast<double>(expected.size()) < 0.01);  // a near tie here or there
        for (int threads : {2, 3}) {
          Engine engine(program, *kernels, threads, true);
          CHECK(run(engine, images, batch) == expected);
          std::vector<std::thread> callers;
          std::atomic<int> wrong{0};
          for (int i = 0; i < 3; ++i) {
            callers.emplace_back([&] {
              for (int k = 0; k < 3; ++k)
                wrong += run(engine, images, batch) != expected || run(single, images, batch) != expected;
            });
          }
          for (std::thread& caller : callers) caller.join();
          CHECK(wrong == 0);
        }
      }
    }
  }
}

template <typename Change>
void expect_refusal(Change change) {
  Program program = block_program(5, 2, 4, 4);
  change(program);
  bool refused = false;
  try {
    check(program);
  } catch (const ProgramError&) {
    refused = true;
  }
  CHECK(refused);
}

void test_check() {
  check(block_program(5, 2, 4, 4));
  expect_refusal([](Program& p) { p.ops[0].inputs[0] = 99; });
  expect_refusal([](Program& p) { p.ops[0].output = -1; });
  expect_refusal([](Program& p) { p.ops[2].tensors[0] = 7; });
  expect_refusal([](Program& p) { p.ops.erase(p.ops.begin()); });
  expect_refusal([](Program& p) { p.buffers[1].shape[0] = 6; });
  expect_refusal([](Program& p) { p.buffers[0].shape = {int64_t{1} << 40, int64_t{1} << 40}; });
  expect_refusal([](Program& p) { p.buffers[2].grid->bits[0] = 9; });
  expect_refusal([](Program& p) { p.buffers[2].grid->scale[0] = NAN; });
  expect_refusal([](Program& p) { p.buffers[2].grid->axis = 5; });
  expect_refusal([](Program& p) { p.weights[0].codes[3] = 100; });
  expect_refusal([](Program& p) { p.weights[0].codes.pop_back(); });
  expect_refusal([](Program& p) { p.weights[0].row_groups = 5; });
  expect_refusal([](Program& p) { p.constants[0].data[0] = INFINITY; });
  expect_refusal([](Program& p) { p.ops[3].integers[0] = 3; });
  expect_refusal([](Program& p) { p.outputs = {50}; });
}

// One random number of a program is changed. Whatever `check` lets through must run without a sanitizer's complaint.
void mutate(Program& p) {
  auto any = [](auto& list) -> auto& { return list[static_cast<size_t>(pick(0, static_cast<int>(list.size()) - 1))]; };
  auto number = [](int64_t old) { return pick(0, 2) == 0 ? int64_t{pick(-3, 70)} : old + pick(-2, 2); };
  switch (pick(0, 8)) {
    case 0: any(any(p.buffers).shape) = number(5); break;
    case 1: any(p.ops).inputs[0] = pick(-1, static_cast<int>(p.buffers.size())); break;
    case 2: any(p.ops).output = pick(-1, static_cast<int>(p.buffers.size())); break;
    case 3: {
      Op& op = any(p.ops);
      if (!op.integers.empty()) any(op.integers) = number(any(op.integers));
      if (!op.tensors.empty()) any(op.tensors) = pick(-1, 8);
      break;
    }
    case 4: any(p.ops).kind = static_cast<Kind>(pick(0, static_cast<int>(Kind::kMeanTokens))); break;
    case 5: std::swap(any(p.ops), any(p.ops)); break;
    case 6: {
      Buffer& b = any(p.buffers);
      if (!b.grid) break;
      b.grid->axis = pick(-1, 4);
      if (pick(0, 1) == 0) b.grid->bits[0] = pick(0, 10);
      if (pick(0, 1) == 0) b.grid->is_signed = !b.grid->is_signed;
      if (pick(0, 1) == 0) {
        b.grid->bits.assign(static_cast<size_t>(pick(0, 4)), 4);
        b.grid->scale.assign(b.grid->bits.size(), 0.1f);
        b.grid->offset.assign(b.grid->bits.size(), 0.0f);
      }
      break;
    }
    case 7: {
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

void test_mutants() {
  int ran = 0;
  for (int turn = 0; turn < 3000; ++turn) {
    Program program = block_program(pick(1, 9), 2, 4, 4);
    for (int i = pick(1, 3); i > 0; --i) mutate(program);
    try {
      Engine engine(program, choose_kernels(""), 2, turn % 2 == 0);
      std::vector<std::vector<float>> arrays;  // large enough for int16 codes too
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
  CHECK(ran > 100 && ran < 2900);
}

}  // namespace
}  // namespace qvit

int main() {
  qvit::test_gemm();
  qvit::test_rows();
  qvit::test_pack();
  qvit::test_engine();
  qvit::test_check();
  qvit::test_mutants();
  std::printf("%d failed checks\n", qvit::failures);
  return qvit::failures == 0 ? 0 : 1;
}
