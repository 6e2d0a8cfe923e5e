#include "gelu_table.h"

#include <array>
#include <cmath>

namespace qvit {
namespace {

using Table = std::array<float, 4 * kGeluSegments>;

// The cubic through the Chebyshev nodes of a segment: within a few percent of the best there is.
Table make_table() {
  Table table{};
  for (int i = 0; i < kGeluSegments; ++i) {
    double r[4], divided[4];
    for (int n = 0; n < 4; ++n) {
      r[n] = 0.5 * std::cos((2 * n + 1) * 3.14159265358979323846 / 8);
      divided[n] = 0.5 * std::erf((i + r[n]) / static_cast<double>(kGeluSteps) * 0.70710678118654752);
    }
    for (int order = 1; order < 4; ++order) {  // Newton's divided differences
      for (int n = 3; n >= order; --n) divided[n] = (divided[n] - divided[n - 1]) / (r[n] - r[n - order]);
    }
    double c[4] = {divided[3], 0, 0, 0};  // expanded from the innermost bracket outwards
    for (int n = 2; n >= 0; --n) {
      for (int k = 3; k > 0; --k) c[k] = c[k - 1] - r[n] * c[k];
      c[0] = divided[n] - r[n] * c[0];
    }
    for (int k = 0; k < 4; ++k) table[static_cast<size_t>(k * kGeluSegments + i)] = static_cast<float>(c[k]);
  }
  return table;
}

}  // namespace

const float* gelu_table() {
  static const Table table = make_table();
  return table.data();
}

}  // namespace qvit
