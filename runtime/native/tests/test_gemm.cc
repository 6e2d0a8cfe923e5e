// The GEMM with the epilogues of values, every path against the scalar one.
#include <algorithm>
#include <cmath>

#include "step.h"
#include "testing.h"

namespace qvit {
namespace {

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

}  // namespace

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

}  // namespace qvit
