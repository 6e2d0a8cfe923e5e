#include "programs.h"

#include "testing.h"

namespace qvit {
namespace {

Grid one_grid(int bits, bool is_signed, float scale) { return {{bits}, is_signed, {scale}, {0.0f}, 0}; }

// A program under construction; every call returns the number of what it added.
struct Draft {
  Program p;

  int values(std::vector<int64_t> shape) {
    p.buffers.push_back({std::move(shape), std::nullopt});
    return static_cast<int>(p.buffers.size()) - 1;
  }
  int codes(std::vector<int64_t> shape, int bits, bool is_signed, float scale) {
    p.buffers.push_back({std::move(shape), one_grid(bits, is_signed, scale)});
    return static_cast<int>(p.buffers.size()) - 1;
  }
  int constant(std::vector<int64_t> shape, float mean) {
    int64_t n = 1;
    for (int64_t s : shape) n *= s;
    std::vector<float> data(static_cast<size_t>(n));
    for (float& f : data) f = mean + real(0.1f);
    p.constants.push_back({std::move(shape), data});
    return static_cast<int>(p.constants.size()) - 1;
  }
  int integers(std::vector<int64_t> shape, int low, int high) {
    int64_t n = 1;
    for (int64_t s : shape) n *= s;
    std::vector<int32_t> data(static_cast<size_t>(n));
    for (int32_t& v : data) v = pick(low, high);
    p.integers.push_back({std::move(shape), data});
    return static_cast<int>(p.integers.size()) - 1;
  }
  int weight(int64_t out, int64_t in, int bits) {
    std::vector<int8_t> w(static_cast<size_t>(out * in));
    for (auto& c : w) c = static_cast<int8_t>(pick(-(1 << (bits - 1)), (1 << (bits - 1)) - 1));
    p.weights.push_back({out, in, 1, 1, w, {bits}, {0.1f / static_cast<float>(1 << bits)}});
    return static_cast<int>(p.weights.size()) - 1;
  }
  int emit(Kind kind, std::vector<int> inputs, int output, std::vector<int> tensors = {},
           std::vector<int64_t> integers = {}, std::vector<double> reals = {}) {
    p.ops.push_back({kind, std::move(inputs), output, std::move(tensors), std::move(integers), std::move(reals)});
    return output;
  }

  // R with a factor of about 2^-shrink.
  int requantize(int from, int bits, int shrink) {
    const int to = codes(p.buffers[from].shape, bits, true, 0.1f);
    const int multiplier = integers({1}, 1 << 29, (1 << 30) - 1), shift = integers({1}, 29 + shrink, 30 + shrink);
    return emit(Kind::kRequantize, {from}, to, {multiplier, shift});
  }
  int accumulate(int from, int64_t out) {
    std::vector<int64_t> shape = p.buffers[from].shape;
    const int w = weight(out, shape.back(), 8), bias = integers({out}, -1000, 1000);
    shape.back() = out;
    return emit(Kind::kLinearAccumulate, {from}, codes(shape, 32, true, 0.01f), {w, bias});
  }
  int norm(int from) {
    const int64_t channels = p.buffers[from].last();
    const int multiplier = integers({channels}, -(1 << 20), 1 << 20), bias = integers({channels}, -2000, 2000);
    return emit(Kind::kIntegerLayerNorm, {from}, codes(p.buffers[from].shape, 8, true, 0.05f), {multiplier, bias, -1},
                {40, 0});
  }
  int add(int left, int right) {
    const int out = codes(p.buffers[left].shape, 16, true, 0.01f);
    const int m = integers({1}, 1 << 29, (1 << 30) - 1), e = integers({1}, 30, 31), f = integers({1}, 36, 38);
    return emit(Kind::kAddRequantize, {left, right}, out, {m, e, m, f});
  }
};

}  // namespace

Program block_program(int tokens, int heads, int dim, int bits) {
  Draft d;
  const int64_t channels = int64_t{heads} * dim;
  const int x = d.values({tokens, channels}), n = d.values({tokens, channels}),
            c = d.codes({tokens, channels}, bits, true, 0.3f);
  d.emit(Kind::kLayerNorm, {x}, n, {d.constant({channels}, 1), d.constant({channels}, 0)}, {}, {1e-6});
  d.emit(Kind::kQuantize, {n}, c);
  const int qkv = d.values({tokens, 3 * channels});
  d.emit(Kind::kLinear, {c}, qkv, {d.weight(3 * channels, channels, bits), d.constant({3 * channels}, 0)});
  int part[3];
  for (int i = 0; i < 3; ++i) {
    const int split = d.values({heads, tokens, dim});
    part[i] = d.codes({heads, tokens, dim}, bits, true, 0.2f);
    d.emit(Kind::kSplitHeads, {qkv}, split, {}, {i, 3});
    d.emit(Kind::kQuantize, {split}, part[i]);
  }
  const int scores = d.values({heads, tokens, tokens}), soft = d.values({heads, tokens, tokens});
  const int map = d.codes({heads, tokens, tokens}, bits, false, 0.02f);
  d.emit(Kind::kQueryKey, {part[0], part[1]}, scores, {}, {}, {0.2});
  d.emit(Kind::kSoftmax, {scores}, soft, {-1, -1});
  d.emit(Kind::kQuantize, {soft}, map);
  const int mixed = d.values({heads, tokens, dim}), mixed_codes = d.codes({heads, tokens, dim}, bits, true, 0.1f);
  const int merged = d.codes({tokens, channels}, bits, true, 0.1f), proj = d.values({tokens, channels}),
            sum = d.values({tokens, channels});
  d.emit(Kind::kAttentionValue, {map, part[2]}, mixed);
  d.emit(Kind::kQuantize, {mixed}, mixed_codes);
  d.emit(Kind::kMergeHeads, {mixed_codes}, merged);
  d.emit(Kind::kLinear, {merged}, proj, {d.weight(channels, channels, bits), d.constant({channels}, 0)});
  d.emit(Kind::kAdd, {x, proj}, sum);
  d.p.inputs = {x};
  d.p.outputs = {sum};
  return d.p;
}

Program long_product(int64_t width, bool query_signed, bool key_signed) {
  Draft d;
  const int query = d.codes({1, 1, width}, 8, query_signed, 1.0f), key = d.codes({1, 1, width}, 8, key_signed, 1.0f);
  d.p.inputs = {query, key};
  d.p.outputs = {d.emit(Kind::kQueryKey, {query, key}, d.values({1, 1, 1}), {}, {}, {1.0})};
  return d.p;
}

Program integer_program(int tokens, int heads, int dim) {
  Draft d;
  const int64_t channels = int64_t{heads} * dim;
  const int x = d.values({tokens, channels}), c = d.codes({tokens, channels}, 8, true, 0.02f);
  d.emit(Kind::kQuantize, {x}, c);
  const int prefix = d.integers({2, channels}, -3000, 3000), position = d.integers({tokens, channels}, -3000, 3000);
  const int64_t all = tokens + 2;
  int stream = d.emit(Kind::kIntegerTokens, {c}, d.codes({all, channels}, 16, true, 0.01f),
                      {prefix, position, d.integers({1}, 1 << 20, 1 << 20), d.integers({1}, 14, 14)});
  const int qkv = d.requantize(d.accumulate(d.norm(stream), 3 * channels), 8, 8);
  int part[3];
  for (int i = 0; i < 3; ++i) {
    part[i] = d.emit(Kind::kSplitHeads, {qkv}, d.codes({heads, all, dim}, 8, true, 0.1f), {}, {i, 3});
  }
  const int scores = d.emit(Kind::kQueryKeyAccumulate, {part[0], part[1]}, d.codes({heads, all, all}, 32, true, 0.01f));
  const int map = d.emit(Kind::kShiftmax, {d.requantize(scores, 8, 8)}, d.codes({heads, all, all}, 8, false, 0.004f),
                         {d.integers({heads, all, all}, -20, 20), -1}, {10, 15});
  const int mixed =
      d.emit(Kind::kAttentionValueAccumulate, {map, part[2]}, d.codes({heads, all, dim}, 32, true, 0.01f));
  const int merged = d.emit(Kind::kMergeHeads, {d.requantize(mixed, 8, 7)}, d.codes({all, channels}, 8, true, 0.1f));
  stream = d.add(stream, d.accumulate(merged, channels));
  const int hidden = d.requantize(d.accumulate(d.norm(stream), 2 * channels), 8, 7);
  const int active = d.emit(Kind::kShiftGelu, {hidden}, d.codes({all, 2 * channels}, 32, true, 0.001f), {}, {9, 20});
  stream = d.add(stream, d.accumulate(d.requantize(active, 8, 8), channels));
  const int sum = d.emit(Kind::kSumTokens, {stream}, d.codes({channels}, 32, true, 0.01f), {}, {1});
  const int out = d.emit(Kind::kDequantize, {sum}, d.values({channels}));
  d.p.inputs = {x};
  d.p.outputs = {out};
  return d.p;
}

Program log2_program(int tokens, int heads, int dim) {
  Draft d;
  const int64_t channels = int64_t{heads} * dim;
  const int x = d.values({tokens, channels}), c = d.codes({tokens, channels}, 8, false, 0.02f);
  d.emit(Kind::kQuantize, {x}, c);
  const int normal = d.emit(
      Kind::kIntegerLayerNorm, {c}, d.codes({tokens, channels}, 8, true, 0.05f),
      {d.integers({channels}, -(1 << 20), 1 << 20), d.integers({channels}, -2000, 2000), d.integers({channels}, 0, 3)},
      {40, 128});
  int part[3];
  for (int i = 0; i < 3; ++i) {  // the same codes three times: all columns are one part
    part[i] = d.emit(Kind::kSplitHeads, {normal}, d.codes({heads, tokens, dim}, 8, true, 0.05f), {}, {0, 1});
  }
  const std::vector<int64_t> square = {heads, tokens, tokens};
  const int scores = d.emit(Kind::kQueryKey, {part[0], part[1]}, d.values(square), {}, {}, {0.2});
  const int codes = d.emit(Kind::kQuantize, {scores}, d.codes(square, 8, true, 0.05f));
  const int map = d.emit(Kind::kLogIntSoftmax, {codes}, d.codes(square, 4, false, 1.0f),
                         {d.integers(square, -20, 20), -1}, {14, 54, 1116});
  const int mixed = d.emit(Kind::kShiftAttentionValue, {map, part[2]}, d.values({heads, tokens, dim}));
  const int regions = d.codes({heads, tokens, 2 * dim}, 5, false, 0.02f);
  d.p.buffers[regions].grid = Grid{{5, 5}, false, {0.02f, 0.08f}, {-0.2f, 0.0f}, 2};
  d.emit(Kind::kQuantizeRegions, {mixed}, regions);
  const int out = d.emit(Kind::kLinear, {regions}, d.values({heads, tokens, channels}),
                         {d.weight(channels, dim, 8), d.constant({channels}, 0)});
  d.p.inputs = {x};
  d.p.outputs = {out};
  return d.p;
}

}  // namespace qvit
