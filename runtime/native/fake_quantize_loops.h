// The loops of fake quantization, in GCC's and Clang's portable vectors: every file of kernels includes them, and its flags
// decide how wide a vector is. Element i of a run goes to lane i mod 16 of the sums at every width, so no sum depends on it.
//
// Rounding half to even without an instruction for it: codes have less than 22 bits, so adding and taking away 1.5 * 2^23
// leaves no room for a fraction, and the addition rounds as every addition does. The sign is put back for a result of -0.
// Comparisons are written so that a NaN fails them and passes through, as in torch.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels_training.h"

namespace qvit {
namespace {

// As wide as a register: of a wider vector GCC splits arithmetic well, and comparisons into single elements.
#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif
constexpr int kVectors = kSumLanes / kWidth;

typedef float Floats __attribute__((vector_size(4 * kWidth)));
typedef int32_t Ints __attribute__((vector_size(4 * kWidth)));
typedef uint32_t Words __attribute__((vector_size(4 * kWidth)));
typedef uint16_t Halves __attribute__((vector_size(2 * kWidth)));

struct Bfloat16 {
  uint16_t bits;
};

// References, not values: how such vectors are passed by value depends on the flags, and GCC warns of it.
inline void load(const float* from, Floats& to) { std::memcpy(&to, from, sizeof to); }

inline void load(const Bfloat16* from, Floats& to) {
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  const Words words = __builtin_convertvector(halves, Words) << 16;
  std::memcpy(&to, &words, sizeof to);
}

inline void store(const Floats& from, float* to) { std::memcpy(to, &from, sizeof from); }

// Half to even; adding could carry a NaN into infinity, so it becomes the quiet one.
inline void store(const Floats& from, Bfloat16* to) {
  Words words;
  std::memcpy(&words, &from, sizeof words);
  const Words rounded = (words + 0x7fff + ((words >> 16) & 1)) >> 16;
  const Words chosen = from == from ? rounded : Words{} + 0x7fc0;
  const Halves halves = __builtin_convertvector(chosen, Halves);
  std::memcpy(to, &halves, sizeof halves);
}

struct VectorGrid {
  Floats scale, subtracted, added, low, high;

  explicit VectorGrid(const GroupGrid& g)  // minus zero: plus zero would lose the sign of -0
      : scale(g.scale - Floats{}),
        subtracted(g.subtracted - Floats{}),
        added(g.added - Floats{}),
        low(g.low - Floats{}),
        high(g.high - Floats{}) {}

  void steps(const Floats& x, Floats& u) const { u = (x - subtracted) / scale; }
  void clamp(const Floats& u, Floats& c) const {
    c = u > high ? high : u;
    c = c < low ? low : c;
  }
  static void round(const Floats& c, Floats& r) {
    const float big = 12582912.0f;
    Words sign, bits;
    r = (c + big) - big;
    std::memcpy(&sign, &c, sizeof sign);
    std::memcpy(&bits, &r, sizeof bits);
    bits |= sign & 0x80000000u;
    std::memcpy(&r, &bits, sizeof r);
  }
};

// 16 elements
template <typename X, typename Y>
inline void quantize_lanes(const VectorGrid& grid, const X* x, Y* out) {
  for (int j = 0; j < kVectors; ++j) {
    Floats u, c, r;
    load(x + j * kWidth, u);
    grid.steps(u, u);
    grid.clamp(u, c);
    VectorGrid::round(c, r);
    store(r * grid.scale + grid.added, out + j * kWidth);
  }
}

template <typename X, typename Y>
void fake_quantize(const FakeQuantizeArgs& a) {
  const VectorGrid grid(a.grid);
  const X* x = static_cast<const X*>(a.x);
  Y* out = static_cast<Y*>(a.out);
  ptrdiff_t i = 0;
  for (; i + kSumLanes <= a.count; i += kSumLanes) quantize_lanes(grid, x + i, out + i);
  if (i < a.count) {
    const size_t rest = static_cast<size_t>(a.count - i);
    X last[kSumLanes] = {};
    Y result[kSumLanes];
    std::memcpy(last, x + i, rest * sizeof(X));
    quantize_lanes(grid, last, result);
    std::memcpy(out + i, result, rest * sizeof(Y));
  }
}

// GradientLanes
struct VectorSums {
  Floats inside[kVectors], upper[kVectors], lower[kVectors];
};

// 16 elements
template <typename X, typename Y>
inline void gradient_lanes(const VectorGrid& grid, const X* x, const Y* d, X* dx, VectorSums& sums) {
  const Floats zero = {};
  for (int j = 0; j < kVectors; ++j) {
    Floats u, c, r, g;
    load(x + j * kWidth, u);
    load(d + j * kWidth, g);
    grid.steps(u, u);
    grid.clamp(u, c);
    VectorGrid::round(c, r);
    const Ints above = u > grid.high, below = u < grid.low;
    sums.inside[j] += (r - c) * g;  // outside c is a whole number, and this is 0
    sums.upper[j] += above ? g : zero;
    sums.lower[j] += below ? g : zero;
    store((above | below) ? zero : g, dx + j * kWidth);
  }
}

template <typename X, typename Y>
void gradient(const FakeQuantizeGradientArgs& a) {
  const VectorGrid grid(a.grid);
  const X* x = static_cast<const X*>(a.x);
  const Y* d = static_cast<const Y*>(a.d);
  X* dx = static_cast<X*>(a.dx);
  VectorSums sums;
  static_assert(sizeof sums == sizeof *a.lanes);
  std::memcpy(&sums, a.lanes, sizeof sums);
  ptrdiff_t i = 0;
  for (; i + kSumLanes <= a.count; i += kSumLanes) gradient_lanes(grid, x + i, d + i, dx + i, sums);
  if (i < a.count) {  // lanes past the end repeat an element of the tensor, with a gradient of 0
    const size_t rest = static_cast<size_t>(a.count - i);
    X last[kSumLanes], result[kSumLanes];
    Y upstream[kSumLanes] = {};
    for (X& each : last) each = x[i];
    std::memcpy(last, x + i, rest * sizeof(X));
    std::memcpy(upstream, d + i, rest * sizeof(Y));
    gradient_lanes(grid, last, upstream, result, sums);
    std::memcpy(dx + i, result, rest * sizeof(X));
  }
  std::memcpy(a.lanes, &sums, sizeof sums);
}

const TrainingKernels kTrainingKernels = {
    {{fake_quantize<float, float>, fake_quantize<float, Bfloat16>},
     {fake_quantize<Bfloat16, float>, fake_quantize<Bfloat16, Bfloat16>}},
    {{gradient<float, float>, gradient<float, Bfloat16>}, {gradient<Bfloat16, float>, gradient<Bfloat16, Bfloat16>}},
};

}  // namespace
}  // namespace qvit
