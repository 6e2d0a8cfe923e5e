// Kernels of training: fake quantization of values that lie together and share one grid (see fake_quantize.h).
#pragma once

#include <cstddef>

namespace qvit {

// Sums are taken in lanes: element i of a run goes to lane i mod 16, whatever the width of the processor's registers.
constexpr int kSumLanes = 16;

enum class Real { kFloat32, kBfloat16 };
constexpr int kReals = 2;

struct GroupGrid {
  float scale;
  float subtracted, added;  // the offset twice; without one 0 and -0, which change no bit, not even the sign of a zero
  float low, high;          // codes, whole numbers
};

struct FakeQuantizeArgs {
  const void* x;
  void* out;
  ptrdiff_t count;
  GroupGrid grid;
};

struct GradientLanes {
  float inside[kSumLanes];  // d (round(u) - u) of the elements on the grid
  float upper[kSumLanes];   // d of those above it
  float lower[kSumLanes];   // d of those below it
};

struct FakeQuantizeGradientArgs {
  const void* x;
  const void* d;
  void* dx;
  ptrdiff_t count;
  GroupGrid grid;
  GradientLanes* lanes;  // added to
};

// [type of x, and of dx][type of the output, and of d]
struct TrainingKernels {
  void (*fake_quantize[kReals][kReals])(const FakeQuantizeArgs&);
  void (*gradient[kReals][kReals])(const FakeQuantizeGradientArgs&);
};

}  // namespace qvit
