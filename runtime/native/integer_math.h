// The arithmetic of the integer-only ops on single numbers, as qvit_runtime/integer_shift.py defines it. Every kernel
// and every table agrees with these functions, number by number; `>>` is the arithmetic shift, which C++20 guarantees.
#pragma once

#include <cmath>
#include <cstdint>

namespace qvit {
namespace {

// R(x; m, e) with `half` = 2^(e-1); a narrow x may be a stored code if `half` includes qmin * m (see
// kernels_integer.h).
constexpr int64_t rescale(int64_t x, int64_t multiplier, int64_t half, int64_t shift) {
  return (x * multiplier + half) >> shift;
}

constexpr int64_t clip(int64_t x, int64_t low, int64_t high) { return x < low ? low : (x > high ? high : x); }

constexpr int64_t floor_divide(int64_t a, int64_t b) {  // b > 0
  return a / b - (a % b < 0 ? 1 : 0);
}

// E(t; unit, n) ~ unit 2^n e^(t / unit) for t <= 0.
constexpr int64_t shift_exp(int64_t t, int64_t unit, int fraction) {
  t = t + (t >> 1) - (t >> 4);
  if (t < -fraction * unit) t = -fraction * unit;
  const int64_t q = -t / unit, r = t + q * unit;
  return ((r + 2 * unit) << (fraction - q)) >> 1;
}

// Multiply-shift normalisation: (e * floor((2^31 - 1) / sum)) >> shift.
inline constexpr int64_t kOne31 = (int64_t{1} << 31) - 1;

// floor(sqrt(n)) for n in 0..2^62: the double root is off by one at most.
inline int64_t integer_sqrt(int64_t n) {
  int64_t root = static_cast<int64_t>(std::sqrt(static_cast<double>(n)));
  if (root * root > n) --root;
  if ((root + 1) * (root + 1) <= n) ++root;
  return root;
}

// e of LogIntSoftmax for d = max - x >= 0: a quadratic between whole powers of two.
constexpr int64_t log_int_exp(int64_t d, int64_t ln2, int64_t linear, int64_t constant) {
  if (d > 30 * ln2) d = 30 * ln2;
  const int64_t q = d / ln2, r = q * ln2 - d;
  return (r * (r + linear) + constant) << (30 - q);
}

// Bits below the point in the sums of ShiftAttentionValue, for log2 codes of this many bits.
constexpr int shift_fraction(int bits) { return bits < 5 ? (1 << bits) - 2 : 20; }

}  // namespace
}  // namespace qvit
