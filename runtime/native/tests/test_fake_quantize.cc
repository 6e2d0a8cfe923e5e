// Fake quantization: every kernel path against the plain formula and against each other, on ragged shapes, misaligned
// pointers and values that are not finite; several threads and callers give the sums of one.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>

#include "fake_quantize.h"
#include "testing.h"

namespace qvit {
namespace {

float narrowed(float x) {  // through bfloat16
  uint32_t word;
  std::memcpy(&word, &x, sizeof word);
  word = (word + 0x7fff + ((word >> 16) & 1)) & 0xffff0000u;
  std::memcpy(&x, &word, sizeof x);
  return x;
}

std::vector<uint16_t> halves(const std::vector<float>& x) {
  std::vector<uint16_t> result;
  for (const float each : x) {
    const float low = narrowed(each);
    uint32_t word;
    std::memcpy(&word, &low, sizeof word);
    result.push_back(static_cast<uint16_t>(word >> 16));
  }
  return result;
}

// A tensor in a type of choice, one element off any alignment.
class Tensor {
 public:
  Tensor(const std::vector<float>& x, Real type) : type_(type), bytes_(x.size() * size() + size()) {
    if (type == Real::kFloat32) {
      if (!x.empty()) std::memcpy(data(), x.data(), x.size() * 4);
    } else if (const std::vector<uint16_t> h = halves(x); !x.empty()) {
      std::memcpy(data(), h.data(), x.size() * 2);
    }
  }
  void* data() { return bytes_.data() + size(); }
  ConstValues input() { return {data(), type_}; }
  Values output() { return {data(), type_}; }
  std::vector<unsigned char> bytes() const { return bytes_; }
  float operator[](size_t i) {
    const unsigned char* at = bytes_.data() + size() * (i + 1);
    uint32_t word = 0;
    if (type_ == Real::kFloat32) {
      std::memcpy(&word, at, 4);
    } else {
      uint16_t half;
      std::memcpy(&half, at, 2);
      word = static_cast<uint32_t>(half) << 16;
    }
    float x;
    std::memcpy(&x, &word, 4);
    return x;
  }

 private:
  size_t size() const { return type_ == Real::kFloat32 ? 4 : 2; }

  Real type_;
  std::vector<unsigned char> bytes_;
};

bool same(float a, float b) { return (std::isnan(a) && std::isnan(b)) || (a == b && std::signbit(a) == std::signbit(b)); }

struct Gradients {
  std::vector<unsigned char> dx;
  std::vector<float> scale, offset, bits;
  bool operator==(const Gradients& o) const {
    return dx == o.dx && scale == o.scale && offset == o.offset && bits == o.bits;
  }
};

struct Case {
  GroupedShape shape;
  std::vector<float> x, d, scale, offset;
  std::vector<int64_t> widths;
  Bank bank;

  Case(GroupedShape s, bool is_signed, bool with_offset)
      : shape(s), x(static_cast<size_t>(s.before * s.groups * s.rest)), d(x), scale(static_cast<size_t>(s.groups * 7)) {
    for (float& each : x) each = real(3.0f);
    for (float& each : d) each = real(1.0f);
    for (float& each : scale) each = 0.05f + std::fabs(real(0.3f));
    for (int64_t g = 0; g < s.groups; ++g) widths.push_back(pick(2, 8));
    offset.assign(scale.size(), -0.125f);
    bank = {scale.data(), with_offset ? offset.data() : nullptr, s.groups, 7, widths.data(), s.groups, 2, is_signed};
  }

  Gradients gradients(const Kernels& kernels, Real x_type, Real y_type, int threads) const {
    Tensor in(x, x_type), up(d, y_type), dx(std::vector<float>(x.size()), x_type);
    Gradients g{{}, std::vector<float>(scale.size()), std::vector<float>(scale.size()),
                std::vector<float>(widths.size())};
    fake_quantize_gradient(kernels, shape, bank, in.input(), up.input(), dx.data(), 12.0,
                           {g.scale.data(), bank.offset != nullptr ? g.offset.data() : nullptr, g.bits.data()}, threads);
    g.dx = dx.bytes();
    return g;
  }
};

void check_values(const Case& c, const Kernels& kernels, Real x_type, Real y_type) {
  Tensor in(c.x, x_type), out(std::vector<float>(c.x.size()), y_type);
  fake_quantize(kernels, c.shape, c.bank, in.input(), out.output(), 1);
  for (size_t i = 0; i < c.x.size(); ++i) {
    const int64_t group = static_cast<int64_t>(i) / c.shape.rest % c.shape.groups;
    const GroupGrid g = c.bank.grid_of(group, c.shape.groups);
    const float u = (in[i] - g.subtracted) / g.scale;
    const float code = std::nearbyint(u > g.high ? g.high : (u < g.low ? g.low : u));
    const float expected = code * g.scale + g.added;
    CHECK(same(out[i], y_type == Real::kFloat32 || std::isnan(expected) ? expected : narrowed(expected)));
  }
}

void check_sums(const Case& c) {
  const Gradients g = c.gradients(kScalarKernels, Real::kFloat32, Real::kFloat32, 1);
  for (int64_t group = 0; group < c.shape.groups; ++group) {
    const GroupGrid grid = c.bank.grid_of(group, c.shape.groups);
    double inside = 0, upper = 0, lower = 0;
    for (size_t i = 0; i < c.x.size(); ++i) {
      if (static_cast<int64_t>(i) / c.shape.rest % c.shape.groups != group) continue;
      const float u = (c.x[i] - grid.subtracted) / grid.scale;
      double& sum = u > grid.high ? upper : (u < grid.low ? lower : inside);
      sum += &sum == &inside ? c.d[i] * (std::nearbyint(u) - u) : c.d[i];
    }
    const double by_scale = (inside + upper * grid.high + lower * grid.low) / std::sqrt(12.0 * grid.high);
    const auto entry = static_cast<size_t>(c.bank.entry_of(group, c.shape.groups));
    CHECK(std::fabs(g.scale[entry] - by_scale) < 1e-3 * (1 + std::fabs(by_scale)));
  }
}

}  // namespace

void test_fake_quantize() {
  constexpr Real kTypes[] = {Real::kFloat32, Real::kBfloat16};
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  for (const GroupedShape shape : {GroupedShape{1, 1, 0}, {0, 3, 5}, {1, 1, 1}, {3, 2, 15}, {2, 3, 16}, {5, 3, 17},
                                   {700, 3, 33}, {2, 2, 20011}, {40, 500, 1}}) {
    for (const bool is_signed : {true, false}) {
      Case c(shape, is_signed, !is_signed);
      check_sums(c);
      for (const Real x_type : kTypes) {
        for (const Real y_type : kTypes) {
          const Gradients one = c.gradients(kScalarKernels, x_type, y_type, 1);
          for (const Kernels* kernels : paths()) {
            CHECK(c.gradients(*kernels, x_type, y_type, 1) == one);
            check_values(c, *kernels, x_type, y_type);
          }
        }
      }
      const float odd[] = {inf, -inf, nan, 0.0f, -0.0f, 1e-41f, -1e-41f, 3e38f, -3e38f};
      for (size_t i = 0; i < c.x.size(); ++i) c.x[i] = odd[i % 9];
      for (const Kernels* kernels : paths()) check_values(c, *kernels, Real::kFloat32, Real::kBfloat16);
    }
  }
  const Case c({3, 2, 40000}, true, false);
  const Gradients one = c.gradients(kScalarKernels, Real::kFloat32, Real::kFloat32, 1);
  std::vector<std::thread> callers;
  std::vector<int> equal(3);
  for (size_t i = 0; i < equal.size(); ++i) {
    callers.emplace_back([&, i] { equal[i] = c.gradients(*paths()[0], Real::kFloat32, Real::kFloat32, 2) == one; });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK(std::all_of(equal.begin(), equal.end(), [](int e) { return e == 1; }));
}

}  // namespace qvit
