// What the native tests share. No framework: a failed check prints its line and the program exits with 1. The tests are
// for running under sanitizers too: every kernel path of this processor against the scalar one, on awkward sizes,
// misaligned pointers and extreme codes; then whole plans with several threads and callers, and mutated programs.
#pragma once

#include <cstdio>
#include <random>
#include <vector>

#include "cpu.h"

namespace qvit {

inline int failures = 0;

#define CHECK(condition)                                                  \
  do {                                                                    \
    if (!(condition)) {                                                   \
      ++failures;                                                         \
      std::printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
    }                                                                     \
  } while (false)

inline std::mt19937 random_bits(1);
inline int pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_bits); }
inline float real(float scale) { return std::normal_distribution<float>(0.0f, scale)(random_bits); }

inline std::vector<const Kernels*> paths() {
  std::vector<const Kernels*> all;
  for (const KernelPath& path : kernel_paths()) {
    if (path.built && path.supported) all.push_back(path.kernels);
  }
  return all;
}

// One group of tests each, in files of the same names.
void test_gemm();
void test_rows();
void test_pack();
void test_integer_kernels();
void test_integer_gemm();
void test_fake_quantize();
void test_engine();
void test_integer_engine();
void test_check();
void test_mutants();

}  // namespace qvit
