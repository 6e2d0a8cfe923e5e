// The integer-only kernels as plain loops: what every other path must compute, to the bit.
#include <cmath>

#include "integer_math.h"
#include "kernels_integer.h"

namespace qvit {
namespace {

inline int64_t code_at(const CodeRow& row, ptrdiff_t i) {
  return row.narrow != nullptr ? int64_t{row.narrow[i]} : int64_t{row.wide[i]};
}

// A result within its clipping, stored.
inline void put(const MutableCodeRow& out, ptrdiff_t i, int64_t code, const Clipping& c) {
  const int64_t clipped = clip(code, c.low[i], c.high[i]);
  if (out.narrow != nullptr) {
    out.narrow[i] = static_cast<uint8_t>(clipped - c.low[i]);
  } else {
    out.wide[i] = static_cast<int32_t>(clipped);
  }
}

inline int64_t input_of(const IntegerLayerNormArgs& n, int c) {
  const int64_t x = code_at(n.x, c) + n.base[c];
  return n.exponent != nullptr ? x << n.exponent[c] : x;
}

// x + bias + mask, relative to nothing in particular: only differences matter to a softmax.
template <typename Args>
inline int64_t score_of(const Args& s, int64_t x, int i) {
  return x + (s.bias != nullptr ? s.bias[i] : 0) + (s.mask != nullptr ? s.mask[i] : 0);
}

}  // namespace

namespace scalar {

void requantize(const RequantizeArgs& r) {
  const bool add = r.right.narrow != nullptr || r.right.wide != nullptr;
  const Rescaling &left = r.left_scale, &right = r.right_scale;
  for (ptrdiff_t i = 0; i < r.count; ++i) {
    int64_t code = rescale(code_at(r.left, i), left.multiplier[i], left.half[i], left.shift[i]);
    if (add) code += rescale(code_at(r.right, i), right.multiplier[i], right.half[i], right.shift[i]);
    put(r.out, i, code, r.clip);
  }
}

void layer_norm(const IntegerLayerNormArgs& n) {
  int64_t sum = 0, squares = 0;
  for (int c = 0; c < n.width; ++c) sum += input_of(n, c);
  const int64_t mean = floor_divide(2 * sum + n.width, 2 * int64_t{n.width});
  for (int c = 0; c < n.width; ++c) squares += (input_of(n, c) - mean) * (input_of(n, c) - mean);
  const int64_t root = integer_sqrt(squares), reciprocal = kOne31 / (root > 0 ? root : 1);
  for (int c = 0; c < n.width; ++c) {
    const int64_t z = ((input_of(n, c) - mean) * reciprocal) >> 1;
    put(n.out, c, (((z * n.multiplier[c]) >> (n.shift - 8)) + n.bias[c] + 128) >> 8, n.clip);
  }
}

void shiftmax(const ShiftmaxArgs& s) {
  int64_t largest = INT64_MIN, sum = 0;
  for (int i = 0; i < s.width; ++i) {
    const int64_t x = score_of(s, code_at(s.x, i), i);
    largest = x > largest ? x : largest;
  }
  for (int i = 0; i < s.width; ++i) {
    const int64_t e = shift_exp(score_of(s, code_at(s.x, i), i) - largest, s.unit, s.fraction);
    s.scratch[i] = static_cast<int32_t>(e);
    sum += e;
  }
  const int64_t factor = kOne31 / sum;
  const int64_t top = (1 << s.bits) - 1;
  for (int i = 0; i < s.width; ++i) {
    const int64_t rounded = (((s.scratch[i] * factor) >> (30 - s.bits)) + 1) >> 1;
    s.out[i] = static_cast<uint8_t>(rounded < top ? rounded : top);
  }
}

void quantize_regions(const QuantizeRegionsArgs& q) {
  for (ptrdiff_t i = 0; i < q.count; ++i) {
    const float above = q.x[i] - q.offset, steps = above / q.low_scale, far = above / q.high_scale;
    const float low = std::nearbyint(steps > 0.0f ? steps : 0.0f);
    const bool is_low = low <= q.low_top;
    q.low[i] = is_low ? static_cast<uint8_t>(low) : uint8_t{0};
    q.high[i] = is_low ? uint8_t{0} : static_cast<uint8_t>(std::nearbyint(far < q.high_top ? far : q.high_top));
  }
}

}  // namespace scalar

// code >= k where round(sum / e) is at least 1.5 * 2^(k-1), that is 3 * 2^(k-2), and 2 for k = 1: as thresholds on e.
// e falls with the distance from the maximum, so the code of the next distance is found from the last one by a step or
// two, and divisions are made once a row.
void log_int_softmax(const LogIntSoftmaxArgs& s) {
  const bool plain = s.bias == nullptr && s.mask == nullptr;
  int64_t largest = INT64_MIN, sum = 0;
  for (int i = 0; i < s.width; ++i) {
    const int64_t x = score_of(s, s.x[i], i);
    largest = x > largest ? x : largest;
  }
  for (int i = 0; i < s.width; ++i) {
    const int64_t d = largest - score_of(s, s.x[i], i);
    s.scratch[i] = plain ? s.table[d] : log_int_exp(d, s.ln2, s.linear, s.constant);
    sum += s.scratch[i];
  }
  const int top = (1 << s.bits) - 1, steps = top < 62 ? top : 62;
  int64_t threshold[64] = {INT64_MAX};
  threshold[1] = 2 * sum / 3;
  for (int k = 2; k <= steps; ++k) threshold[k] = 2 * sum / ((int64_t{3} << (k - 1)) - 1);
  auto code_from = [&](int code, int64_t e) {
    while (code < steps && e <= threshold[code + 1]) ++code;
    while (e > threshold[code]) --code;
    return code;
  };
  if (plain && s.width > 64) {
    uint8_t codes[256];
    int code = 0;
    for (int d = 0; d < 256; ++d) codes[d] = static_cast<uint8_t>(code = code_from(code, s.table[d]));
    for (int i = 0; i < s.width; ++i) s.out[i] = codes[largest - s.x[i]];
  } else {
    int code = 0;
    for (int i = 0; i < s.width; ++i) s.out[i] = static_cast<uint8_t>(code = code_from(code, s.scratch[i]));
  }
}

const IntegerKernels kScalarIntegerKernels = {scalar::requantize, scalar::layer_norm, scalar::shiftmax,
                                              scalar::quantize_regions};

}  // namespace qvit
