// Integer-only plans: every path, fusion and number of threads gives the same bits; log2 ones nearly so, for their
// floats.
#include <cmath>

#include "engine.h"
#include "programs.h"
#include "testing.h"

namespace qvit {
namespace {

std::vector<float> run(const Program& program, const Kernels& kernels, int threads, bool fuse,
                       const std::vector<float>& images, int64_t batch) {
  Engine engine(program, kernels, threads, fuse);
  std::vector<float> out(static_cast<size_t>(batch * program.buffers[program.outputs[0]].elements()));
  engine.run(batch, {images.data()}, {out.data()}, nullptr);
  return out;
}

}  // namespace

void test_integer_engine() {
  for (int tokens : {1, 11, 40}) {
    for (const bool integers : {true, false}) {
      const Program program = integers ? integer_program(tokens, 3, 20) : log2_program(tokens, 3, 20);
      const int64_t batch = 3;
      std::vector<float> images(static_cast<size_t>(batch * program.buffers[0].elements()));
      for (float& f : images) f = real(1.0f);
      const std::vector<float> scalar = run(program, kScalarKernels, 1, false, images, batch);
      for (const Kernels* kernels : paths()) {
        const std::vector<float> expected = run(program, *kernels, 1, false, images, batch);
        double error = 0.0;
        for (size_t i = 0; i < expected.size(); ++i) error += std::fabs(expected[i] - scalar[i]);
        CHECK(integers ? expected == scalar : error / static_cast<double>(expected.size()) < 0.01);
        for (int threads : {1, 2, 3}) CHECK(run(program, *kernels, threads, true, images, batch) == expected);
      }
    }
  }
}

}  // namespace qvit
