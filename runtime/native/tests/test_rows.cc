// Row kernels on values, and the packing of keys and values.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "step.h"
#include "testing.h"

namespace qvit {

void test_rows() {
  for (int width : {1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 49, 65, 197}) {
    const int rows = 7, padded = static_cast<int>(round_up(width, kPanel));
    std::vector<float> x(rows * width), weight(width), bias(width), levels(width, 15.0f), constants(rows * width);
    for (auto* v : {&x, &weight, &bias, &constants}) {
      for (float& f : *v) f = real(2.0f);
    }
    std::vector<std::vector<float>> normal, soft, active;
    std::vector<std::vector<uint8_t>> codes;
    for (const Kernels* kernels : paths()) {
      std::vector<float> out(rows * width), scores(rows * padded), p(rows * padded), g(rows * width);
      std::vector<uint8_t> bytes(rows * width), map(rows * padded);
      kernels->layer_norm({x.data(), rows, width, weight.data(), bias.data(), 1e-6f, out.data(), nullptr, nullptr});
      kernels->layer_norm(
          {x.data(), rows, width, weight.data(), bias.data(), 1e-6f, nullptr, bytes.data(), levels.data()});
      for (int r = 0; r < rows; ++r) std::copy_n(x.data() + r * width, width, scores.data() + r * padded);
      SoftmaxArgs s{scores.data(), padded, rows, width, constants.data(), constants.data(), p.data(), nullptr,
                    padded,        0,      0,    0};
      kernels->softmax(s);
      for (int r = 0; r < rows; ++r) {
        std::copy_n(x.data() + r * width, width, scores.data() + r * padded);
        std::copy_n(p.data() + r * padded, width, p.data() + r * width);
      }
      s.codes = map.data();
      s.factor = 100.0f;
      s.levels = 15.0f;
      kernels->softmax(s);
      kernels->gelu({x.data(), g.data(), rows * width});
      p.resize(static_cast<size_t>(rows) * width);
      normal.push_back(out);
      soft.push_back(p);
      active.push_back(g);
      codes.push_back(bytes);
    }
    for (size_t path = 1; path < normal.size(); ++path) {
      for (size_t i = 0; i < x.size(); ++i) {
        CHECK(std::fabs(normal[path][i] - normal[0][i]) < 2e-5f);
        CHECK(std::fabs(soft[path][i] - soft[0][i]) < 1e-6f);
        CHECK(std::fabs(active[path][i] - active[0][i]) < 2e-6f);
        CHECK(std::abs(codes[path][i] - codes[0][i]) <= 1);
      }
    }
  }
}

void test_pack() {
  for (int rows : {1, 3, 4, 5, 16, 17, 49}) {
    for (int width : {1, 3, 16, 20, 32, 33, 64}) {
      const int stride = width + 5;
      std::vector<uint8_t> codes(static_cast<size_t>(rows * stride));
      for (auto& c : codes) c = static_cast<uint8_t>(pick(0, 255));
      for (const bool values : {false, true}) {
        const int64_t bytes =
            values ? panels_of(width) * quads_of(rows) * kQuadBytes : panels_of(rows) * quads_of(width) * kQuadBytes;
        const int64_t columns = panels_of(values ? width : rows) * kPanel;
        Aligned<int8_t> first(bytes), second(bytes);
        std::vector<int32_t> sums(static_cast<size_t>(columns)), others(sums);
        PackArgs p{codes.data(), stride, rows, width, 128, 3, first.data(), sums.data(), -8};
        values ? kScalarKernels.pack_values(p) : kScalarKernels.pack_keys(p);
        for (const Kernels* kernels : paths()) {
          std::memset(second.data(), 77, static_cast<size_t>(bytes));  // padding must be cleared
          p.packed = second.data();
          p.correction = others.data();
          values ? kernels->pack_values(p) : kernels->pack_keys(p);
          CHECK(std::memcmp(first.data(), second.data(), static_cast<size_t>(bytes)) == 0);
          const int valid = values ? width : rows;
          CHECK(std::equal(sums.begin(), sums.begin() + valid, others.begin()));
        }
      }
    }
  }
}

}  // namespace qvit
