// Whole plans: threads, callers and fusion change nothing that they should not.
#include <atomic>
#include <cmath>
#include <thread>

#include "engine.h"
#include "programs.h"
#include "testing.h"

namespace qvit {
namespace {

std::vector<float> run(Engine& engine, const std::vector<float>& images, int64_t batch) {
  std::vector<float> out(images.size());
  engine.run(batch, {images.data()}, {out.data()}, nullptr);
  return out;
}

// The longest products that `check` lets through, all codes as large as they get: exact, though parts of the sum wrap.
// That of signed queries (stored as 0..255) and unsigned keys does before the correction.
void check_longest_products() {
  struct Case {
    int64_t width;
    int16_t query, key;
    bool query_signed, key_signed;
  };
  for (const Case& c : {Case{33025, 255, 255, false, false}, {65536, 127, 255, true, false},
                        {65536, -128, 255, true, false}, {65536, 255, -128, false, true}}) {
    const Program program = long_product(c.width, c.query_signed, c.key_signed);
    const std::vector<int16_t> query(static_cast<size_t>(c.width), c.query), key(query.size(), c.key);
    for (const Kernels* kernels : paths()) {
      Engine engine(program, *kernels, 1, true);
      float sum = 0.0f;
      engine.run(1, {query.data(), key.data()}, {&sum}, nullptr);
      CHECK(sum == static_cast<float>(c.width * c.query * c.key));
    }
  }
}

}  // namespace

void test_engine() {
  check_longest_products();
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

}  // namespace qvit
