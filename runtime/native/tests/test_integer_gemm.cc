// The GEMM with integer epilogues, every path against the scalar one, exactly.
#include "integer_math.h"
#include "step.h"
#include "testing.h"

namespace qvit {
namespace {

void compare(int rows, int inputs, int columns, int bits, int weight_bits, Epilogue epilogue, bool narrow, int shift) {
  const int64_t padded = panels_of(columns) * kPanel, quads = quads_of(inputs);
  std::vector<uint8_t> a(static_cast<size_t>(rows * inputs + kSlack + 1));
  for (auto& v : a) v = static_cast<uint8_t>(pick(0, 3) == 0 ? pick(0, (1 << bits) - 1) : (1 << bits) - 1);
  Aligned<int8_t> packed(panels_of(columns) * quads * kQuadBytes);
  const int low = -(1 << (weight_bits - 1));
  for (int o = 0; o < columns; ++o) {
    for (int k = 0; k < inputs; ++k) {
      packed[(o / kPanel * quads + k / kQuad) * kQuadBytes + o % kPanel * kQuad + k % kQuad] =
          static_cast<int8_t>(pick(0, 2) == 0 ? low : pick(low, -low - 1));
    }
  }
  std::vector<int16_t> runs(static_cast<size_t>(panels_of(columns)),
                            static_cast<int16_t>(run_length(bits, weight_bits)));
  std::vector<int32_t> correction(static_cast<size_t>(padded)), residual(static_cast<size_t>(rows * columns));
  std::vector<int64_t> multiplier(static_cast<size_t>(padded)), half(multiplier), by(multiplier);
  std::vector<int32_t> bottom(multiplier.size()), top(bottom);
  for (int64_t c = 0; c < padded; ++c) {
    correction[c] = pick(-100000, 100000);
    multiplier[c] = pick(1 << 28, 1 << 30) * (pick(0, 9) == 0 ? -1 : 1);
    by[c] = pick(32, 42);
    half[c] = int64_t{1} << (by[c] - 1);
    bottom[c] = narrow ? -(1 << pick(1, 7)) : -32768;
    top[c] = -bottom[c] - 1;
  }
  for (auto& v : residual) v = pick(-32768, 32767);
  Aligned<int16_t> wide(kChunkRows * wide_stride(inputs));
  std::vector<uint8_t> codes(static_cast<size_t>(rows * columns + 1));
  std::vector<int32_t> integers(codes.size());
  GemmArgs g{};
  g.a = a.data() + 1;
  g.a_stride = inputs;
  g.rows = rows;
  g.b = packed.data();
  g.columns = columns;
  g.blocks = 1;
  g.block_width = inputs;
  g.b_shift = shift;
  g.runs = runs.data();
  g.correction = correction.data();
  g.column_stride = padded;
  g.epilogue = epilogue;
  g.out_stride = columns;
  g.integer.scale = {multiplier.data(), half.data(), by.data()};
  g.integer.residual_scale = g.integer.scale;
  g.integer.clip = {bottom.data(), top.data()};
  g.integer.residual = residual.data();
  g.integer.out = narrow ? MutableCodeRow{codes.data(), nullptr} : MutableCodeRow{nullptr, integers.data()};
  g.chunk_rows = kChunkRows;
  g.wide = wide.data();
  std::fill(codes.begin(), codes.end(), uint8_t{99});
  std::fill(integers.begin(), integers.end(), 99);
  kScalarKernels.gemm(g);
  const auto expected_codes = codes;
  const auto expected = integers;
  for (const Kernels* kernels : paths()) {
    std::fill(codes.begin(), codes.end(), uint8_t{99});
    std::fill(integers.begin(), integers.end(), 99);
    kernels->gemm(g);
    CHECK(codes == expected_codes && integers == expected);
  }
}

}  // namespace

void test_integer_gemm() {
  const Epilogue epilogues[] = {Epilogue::kSums, Epilogue::kRequantize, Epilogue::kAddRequantize};
  int turn = 0;
  for (int inputs : {1, 2, 3, 4, 5, 15, 16, 17, 33, 64, 65, 200}) {
    for (int columns : {1, 7, 8, 9, 15, 16, 17, 63, 64, 65, 130}) {
      for (int rows : {1, 5, 6, 7, 25}) {
        const Epilogue epilogue = epilogues[turn % 3];
        const bool narrow = epilogue != Epilogue::kSums && turn / 3 % 2 == 0;
        compare(rows, inputs, columns, 2 + turn % 7, 2 + turn / 7 % 7, epilogue, narrow, turn % 5 == 0 ? 4 : 0);
        ++turn;
      }
    }
  }
}

}  // namespace qvit
