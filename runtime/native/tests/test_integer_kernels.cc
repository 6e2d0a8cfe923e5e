// The integer-only kernels: every path gives the scalar one's integers, at awkward sizes and extreme codes.
#include <algorithm>
#include <cstring>

#include "integer_math.h"
#include "step.h"
#include "testing.h"

namespace qvit {
namespace {

constexpr int kWidths[] = {1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 49, 65, 197};

size_t padded(int count) { return static_cast<size_t>(round_up(count, kPanel)); }

// Codes of one width, both ways; mostly extremes.
struct Codes {
  Codes(int count, int bits) : narrow(static_cast<size_t>(count) + 1), wide(narrow.size()) {
    const int64_t top = (int64_t{1} << (bits - 1)) - 1;
    for (auto& v : narrow) v = static_cast<uint8_t>(pick(0, 2) == 0 ? pick(0, 255) : 255 * pick(0, 1));
    for (auto& v : wide) {
      const int64_t extreme = pick(0, 1) == 0 ? top : -top - 1;
      v = static_cast<int32_t>(pick(0, 2) == 0 ? extreme : pick(-5000, 5000));
    }
  }
  CodeRow row(bool as_narrow) const {  // off alignment
    if (as_narrow) return {narrow.data() + 1, nullptr};
    return {nullptr, wide.data() + 1};
  }
  std::vector<uint8_t> narrow;
  std::vector<int32_t> wide;
};

// Multipliers and shifts; small ones keep R of any 32-bit number below 2^30.
struct Scale {
  Scale(int count, bool small) : multiplier(padded(count)), half(multiplier), shift(multiplier) {
    for (size_t i = 0; i < multiplier.size(); ++i) {
      multiplier[i] = pick(0, 3) == 0 ? (pick(0, 1) == 0 ? kOne31 : -kOne31) : pick(-1000000, 1 << 30);
      shift[i] = small ? pick(33, 62) : pick(0, 3) == 0 ? pick(1, 62) : pick(20, 40);
      half[i] = int64_t{1} << (shift[i] - 1);
    }
  }
  Rescaling get() const { return {multiplier.data(), half.data(), shift.data()}; }
  std::vector<int64_t> multiplier, half, shift;
};

struct Bounds {
  Bounds(int count, bool narrow) : low(padded(count)), high(low) {
    for (size_t i = 0; i < low.size(); ++i) {
      const int bits = narrow ? pick(2, 8) : 16;
      low[i] = narrow && pick(0, 1) == 0 ? 0 : -(1 << (bits - 1));
      high[i] = low[i] + (1 << bits) - 1;
    }
  }
  Clipping get() const { return {low.data(), high.data()}; }
  std::vector<int32_t> low, high;
};

// Two results, of which the first is the scalar kernel's, with a guard behind them.
struct Results {
  explicit Results(int count) : narrow(static_cast<size_t>(count) + 2, uint8_t{77}), wide(narrow.size(), 77) {}
  MutableCodeRow row(bool as_narrow) {
    if (as_narrow) return {narrow.data() + 1, nullptr};
    return {nullptr, wide.data() + 1};
  }
  bool operator==(const Results&) const = default;
  std::vector<uint8_t> narrow;
  std::vector<int32_t> wide;
};

void test_requantize() {
  for (int width : kWidths) {
    for (int kinds = 0; kinds < 32; ++kinds) {
      const bool left = (kinds & 1) != 0, right = (kinds & 2) != 0, out = (kinds & 4) != 0, add = (kinds & 8) != 0;
      const bool small = (kinds & 16) != 0;
      const Codes x(width + 1, 32), y(width + 1, 16);
      const Scale a(width, small), b(width, small);
      const Bounds bounds(width, out);
      Results expected(width);
      RequantizeArgs args = {
          x.row(left), add ? y.row(right) : CodeRow{}, a.get(), b.get(), bounds.get(), width, small, expected.row(out)};
      kScalarIntegerKernels.requantize(args);
      for (const Kernels* kernels : paths()) {
        Results found(width);
        args.out = found.row(out);
        kernels->integer->requantize(args);
        CHECK(found == expected);
      }
    }
  }
}

void test_layer_norm() {
  for (int width : kWidths) {
    for (int kinds = 0; kinds < 16; ++kinds) {
      const bool narrow = (kinds & 1) != 0, out = (kinds & 2) != 0, exponents = narrow && (kinds & 4) != 0;
      const bool small = (kinds & 8) != 0;
      const Codes x(width + 1, 16);
      std::vector<int32_t> base(padded(width)), exponent(base), multiplier(base), bias(base);
      for (int c = 0; c < width; ++c) {
        base[c] = narrow ? -pick(0, 255) : 0;
        exponent[c] = pick(0, 8);
        multiplier[c] = small ? pick(-(1 << 20), 1 << 20) : pick(-(1 << 30), 1 << 30);
        bias[c] = small ? pick(-3000, 3000) : pick(-2000000000, 2000000000);
      }
      const Bounds bounds(width, out);
      Results expected(width);
      IntegerLayerNormArgs args = {x.row(narrow),
                                   width,
                                   base.data(),
                                   exponents ? exponent.data() : nullptr,
                                   multiplier.data(),
                                   bias.data(),
                                   small ? pick(35, 62) : pick(9, 62),
                                   small,
                                   bounds.get(),
                                   expected.row(out)};
      kScalarIntegerKernels.layer_norm(args);
      for (const Kernels* kernels : paths()) {
        Results found(width);
        args.out = found.row(out);
        kernels->integer->layer_norm(args);
        CHECK(found == expected);
      }
    }
  }
}

void test_shiftmax() {
  for (int width : kWidths) {
    for (int kinds = 0; kinds < 8; ++kinds) {
      const bool narrow = (kinds & 1) != 0;
      const Codes x(width + 1, 16);
      std::vector<int32_t> bias(width), mask(width);
      for (auto* v : {&bias, &mask}) {
        for (int32_t& b : *v) b = pick(0, 2) == 0 ? -(1 << 28) : pick(-300, 300);
      }
      const int64_t padded = round_up(width, kPanel);
      const int fraction = pick(1, 20), unit = static_cast<int>(pick(1, 1000) % (kOne31 / 2 / width >> fraction) + 1);
      std::vector<int32_t> scratch(static_cast<size_t>(padded));
      std::vector<uint8_t> expected(static_cast<size_t>(padded)), found(expected);
      ShiftmaxArgs args = {x.row(narrow),
                           width,
                           (kinds & 2) != 0 ? bias.data() : nullptr,
                           (kinds & 4) != 0 ? mask.data() : nullptr,
                           unit,
                           fraction,
                           pick(2, 8),
                           expected.data(),
                           scratch.data()};
      kScalarIntegerKernels.shiftmax(args);
      args.out = found.data();
      for (const Kernels* kernels : paths()) {
        kernels->integer->shiftmax(args);
        CHECK(std::equal(expected.begin(), expected.begin() + width, found.begin()));
      }
    }
  }
}

// The code of each distance against its definition, and all paths against each other.
void test_log_int_softmax() {
  for (int width : kWidths) {
    for (int bits : {2, 4, 8}) {
      for (const bool biased : {false, true}) {
        const int64_t ln2 = 14, linear = 54, constant = 1116;
        std::vector<int64_t> table;
        for (int d = 0; d < 256; ++d) table.push_back(log_int_exp(d, ln2, linear, constant));
        const Codes x(width + 1, 8);
        std::vector<int32_t> bias(width);
        for (int32_t& b : bias) b = pick(0, 2) == 0 ? -(1 << 28) : pick(-300, 300);
        std::vector<int64_t> scratch(static_cast<size_t>(width));
        std::vector<uint8_t> out(static_cast<size_t>(width));
        for (const Kernels* kernels : paths()) {
          log_int_softmax({x.narrow.data() + 1, width, biased ? bias.data() : nullptr, nullptr, ln2, linear, constant,
                           table.data(), bits, out.data(), scratch.data()});
          int64_t largest = INT64_MIN, sum = 0;
          std::vector<int64_t> scores(static_cast<size_t>(width));
          for (int i = 0; i < width; ++i) {
            scores[i] = x.narrow[i + 1] + (biased ? bias[i] : 0);
            largest = std::max(largest, scores[i]);
          }
          for (int64_t s : scores) sum += log_int_exp(largest - s, ln2, linear, constant);
          for (int i = 0; i < width; ++i) {
            const int64_t e = log_int_exp(largest - scores[i], ln2, linear, constant);
            const int64_t ratio = sum / e + (sum % e >= e - sum % e ? 1 : 0);
            int f = 0;
            while ((ratio >> (f + 1)) > 0) ++f;
            const int code = f + (2 * ratio >= int64_t{3} << f ? 1 : 0);
            CHECK(out[i] == std::min(code, (1 << bits) - 1));
          }
        }
      }
    }
  }
}

void test_quantize_regions() {
  for (int width : kWidths) {
    std::vector<float> x(static_cast<size_t>(width) + 1);
    for (float& v : x) v = pick(0, 3) == 0 ? 0.05f * static_cast<float>(pick(-9, 60)) - 0.175f : real(2.0f);
    x.back() = 1e30f;
    std::vector<uint8_t> expected(static_cast<size_t>(2 * width + 1), uint8_t{77}), found(expected);
    QuantizeRegionsArgs args = {x.data() + 1,           width, -0.175f, 0.05f, 0.4f, 31.0f, 31.0f, expected.data(),
                                expected.data() + width};
    kScalarIntegerKernels.quantize_regions(args);
    args.low = found.data();
    args.high = found.data() + width;
    for (const Kernels* kernels : paths()) {
      kernels->integer->quantize_regions(args);
      CHECK(found == expected);
    }
  }
}

}  // namespace

void test_integer_kernels() {
  for (int turn = 0; turn < 5; ++turn) {
    test_requantize();
    test_layer_norm();
    test_shiftmax();
  }
  test_log_int_softmax();
  test_quantize_regions();
}

}  // namespace qvit
