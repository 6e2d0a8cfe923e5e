// Fake quantization for training on a CPU: one pass over memory forward, one backward. The formulas are those of
// qvit/quantizers/fake_quantize.py: u = (x - o) / s, codes = round(clamp(u, low, high)), x_hat = codes s + o, in float32, rounded once
// more where the output is bfloat16.
//
// Groups. x is (before, groups, rest), contiguous; the groups divide the middle axis. The grid of a group comes from the
// bank of its quantizer: scale[group, slot], slot = width - lowest, with one row for all groups or one slot for all widths.
//
// Work is cut into tasks of some 16384 elements, by the shape alone. Threads take tasks as they come; each writes the sums
// of its groups to a place of its own, and one thread adds these in double precision in the order of the tasks. So the
// gradients are the same, bit for bit, for every number of threads and in every repetition.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"

namespace qvit {

struct GroupedShape {
  int64_t before, groups, rest;
};

// Nothing is owned; float arrays are row-major.
struct Bank {
  const float* scale;   // (rows, slots), positive
  const float* offset;  // the same, or null
  int64_t rows, slots;
  const int64_t* widths;  // (bit_groups,)
  int64_t bit_groups;
  int64_t lowest;  // width of the first slot
  bool is_signed;

  int64_t bit_group_of(int64_t group, int64_t groups) const { return group * bit_groups / groups; }
  // Index of a group's entry in scale and offset. Throws std::out_of_range for a width that has no slot.
  int64_t entry_of(int64_t group, int64_t groups) const;
  GroupGrid grid_of(int64_t group, int64_t groups) const;
};

struct Values {
  void* data;
  Real type;
};

struct ConstValues {
  const void* data;
  Real type;
};

// Where gradients of the bank go, to be added to: the shapes of Bank's scale and offset, and (bit_groups,); null when
// nobody asks.
struct BankGradient {
  float* scale;
  float* offset;
  float* bits;
};

// out = x_hat.
void fake_quantize(const Kernels& kernels, const GroupedShape& shape, const Bank& bank, const ConstValues& x,
                   const Values& out, int threads);

// dx = gradient of x, of the type of x; `elements` is how many of an image share a group, for LSQ's gradient factor
// 1 / sqrt(elements * high).
void fake_quantize_gradient(const Kernels& kernels, const GroupedShape& shape, const Bank& bank, const ConstValues& x,
                            const ConstValues& d, void* dx, double elements, const BankGradient& gradient, int threads);

}  // namespace qvit
