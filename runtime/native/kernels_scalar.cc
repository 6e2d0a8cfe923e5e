// The baseline kernels: plain loops, no intrinsics. They say in the fewest lines what every other path must compute,
// and they run wherever a C++ compiler does.
#include <cmath>
#include <cstring>

#include "fake_quantize_loops.h"
#include "kernels.h"
#include "layout.h"

namespace qvit {
namespace {

inline float clip(float x, float low, float high) { return x < low ? low : (x > high ? high : x); }

// Round half to even: the default rounding mode, which nobody in this library changes.
inline uint8_t to_code(float steps, float levels) {
  return static_cast<uint8_t>(std::nearbyint(clip(steps, 0.0f, levels)));
}

inline float gelu(float x) {
  const double v = x;
  return static_cast<float>(v * 0.5 * (1.0 + std::erf(v * 0.70710678118654752)));
}

// One row times one panel: exact sums of `quads` quads, no 16-bit detour.
void dot_panel(const uint8_t* a, const int8_t* b, int quads, int32_t* acc) {
  for (int c = 0; c < kPanel; ++c) acc[c] = 0;
  for (int q = 0; q < quads; ++q, a += kQuad, b += kQuadBytes) {
    for (int c = 0; c < kPanel; ++c) {
      for (int k = 0; k < kQuad; ++k) acc[c] += static_cast<int32_t>(a[k]) * b[c * kQuad + k];
    }
  }
}

// Sums that may wrap on their way: the whole of accumulator, shift and correction fits 32 bits (check), parts need not.
int32_t wrapping_sum(int32_t a, int32_t b) {
  return static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
}

void add_shift(const GemmArgs& g, int row, int32_t* acc) {
  int32_t sum = 0;
  for (int k = 0; k < g.block_width; ++k) sum += g.a[row * g.a_stride + k];
  for (int c = 0; c < kPanel; ++c) acc[c] = wrapping_sum(acc[c], sum * g.b_shift);
}

void store(const GemmArgs& g, int row, int column, float v) {
  const ptrdiff_t at = row * g.out_stride + column;
  switch (g.epilogue) {
    case Epilogue::kValues: g.out[at] = v; break;
    case Epilogue::kAdd: g.out[at] = v + g.residual[at]; break;
    case Epilogue::kGelu: g.out[at] = gelu(v); break;
    case Epilogue::kCodes: g.codes[at] = to_code(v, g.levels[column]); break;
    case Epilogue::kGeluCodes:
      g.codes[at] = to_code(gelu(v) * g.grid_factor[column] + g.grid_shift[column], g.levels[column]);
      break;
    default: break;  // integer epilogues have gone another way
  }
}

// Integer epilogues; with the correction comes the bias (see LinearAccumulateStep).
void finish_integers(const GemmArgs& g, int row, int first, int valid, const int32_t* acc) {
  int32_t sums[kPanel];
  for (int c = 0; c < kPanel; ++c) {
    sums[c] = wrapping_sum(acc[c], g.correction[first + c]);
  }
  const ptrdiff_t at = row * g.out_stride + first;
  const IntegerEpilogue& e = g.integer;
  if (g.epilogue == Epilogue::kSums) {
    for (int c = 0; c < valid; ++c) e.out.wide[at + c] = sums[c];
    return;
  }
  RequantizeArgs r{};
  r.left = {nullptr, sums};
  r.left_scale = e.scale.from(first);
  if (g.epilogue == Epilogue::kAddRequantize) {
    r.right = {nullptr, e.residual + at};
    r.right_scale = e.residual_scale.from(first);
  }
  r.clip = e.clip.from(first);
  r.count = valid;
  if (e.out.narrow != nullptr) {
    r.out = {e.out.narrow + at, nullptr};
  } else {
    r.out = {nullptr, e.out.wide + at};
  }
  scalar::requantize(r);
}

void gemm_integers(const GemmArgs& g) {
  const int quads = static_cast<int>(quads_of(g.block_width));
  for (int first = 0; first < g.columns; first += kPanel) {
    const int valid = g.columns - first < kPanel ? g.columns - first : kPanel;
    for (int row = 0; row < g.rows; ++row) {
      int32_t acc[kPanel];
      dot_panel(g.a + row * g.a_stride, g.b + static_cast<ptrdiff_t>(first / kPanel) * quads * kQuadBytes, quads, acc);
      if (g.b_shift != 0) add_shift(g, row, acc);
      finish_integers(g, row, first, valid, acc);
    }
  }
}

void gemm(const GemmArgs& g) {
  if (is_integer(g.epilogue)) return gemm_integers(g);
  const int quads = static_cast<int>(quads_of(g.block_width));
  const int panels = static_cast<int>(panels_of(g.columns));
  for (int p = 0; p < panels; ++p) {
    const int first = p * kPanel;
    const int valid = g.columns - first < kPanel ? g.columns - first : kPanel;
    for (int row = 0; row < g.rows; ++row) {
      float v[kPanel] = {};
      for (int block = 0; block < g.blocks; ++block) {
        int32_t acc[kPanel];
        dot_panel(g.a + row * g.a_stride + static_cast<ptrdiff_t>(block) * g.block_width,
                  g.b + (static_cast<ptrdiff_t>(p) * g.blocks + block) * quads * kQuadBytes, quads, acc);
        if (g.b_shift != 0) add_shift(g, row, acc);
        const ptrdiff_t at = block * g.column_stride + first;
        for (int c = 0; c < valid; ++c) {
          v[c] += static_cast<float>(wrapping_sum(acc[c], g.correction[at + c])) * g.scale[at + c];
        }
      }
      for (int c = 0; c < valid; ++c) store(g, row, first + c, v[c] + g.bias[first + c]);
    }
  }
}

void quantize(const QuantizeArgs& q) {
  for (ptrdiff_t i = 0; i < q.count; ++i) {
    const ptrdiff_t g = q.per_element ? i : 0;
    const float steps = clip((q.x[i] - q.offset[g]) / q.scale[g], q.qmin[g], q.qmax[g]);
    q.codes[i] = static_cast<uint8_t>(std::nearbyint(steps) - q.qmin[g]);
  }
}

void layer_norm(const LayerNormArgs& n) {
  for (int row = 0; row < n.rows; ++row) {
    const float* x = n.x + static_cast<ptrdiff_t>(row) * n.width;
    double sum = 0.0, squares = 0.0;
    for (int i = 0; i < n.width; ++i) sum += x[i];
    const double mean = sum / n.width;
    for (int i = 0; i < n.width; ++i) squares += (x[i] - mean) * (x[i] - mean);
    const double inverse = 1.0 / std::sqrt(squares / n.width + n.eps);
    for (int i = 0; i < n.width; ++i) {
      const float v = static_cast<float>((x[i] - mean) * inverse) * n.weight[i] + n.bias[i];
      if (n.codes != nullptr) {
        n.codes[static_cast<ptrdiff_t>(row) * n.width + i] = to_code(v, n.levels[i]);
      } else {
        n.out[static_cast<ptrdiff_t>(row) * n.width + i] = v;
      }
    }
  }
}

void softmax(const SoftmaxArgs& s) {
  for (int row = 0; row < s.rows; ++row) {
    float* x = s.x + row * s.x_stride;
    const ptrdiff_t constant = static_cast<ptrdiff_t>(row) * s.width;
    float largest = -INFINITY;
    for (int i = 0; i < s.width; ++i) {
      if (s.bias != nullptr) x[i] += s.bias[constant + i];
      if (s.mask != nullptr) x[i] += s.mask[constant + i];
      largest = x[i] > largest ? x[i] : largest;
    }
    double sum = 0.0;
    for (int i = 0; i < s.width; ++i) {
      x[i] = std::exp(x[i] - largest);
      sum += x[i];
    }
    const float inverse = static_cast<float>(1.0 / sum);
    for (int i = 0; i < s.width; ++i) {
      const float p = x[i] * inverse;
      if (s.codes != nullptr) {
        s.codes[row * s.out_stride + i] = to_code(p * s.factor + s.shift, s.levels);
      } else {
        s.out[row * s.out_stride + i] = p;
      }
    }
  }
}

void gelu_all(const GeluArgs& g) {
  for (ptrdiff_t i = 0; i < g.count; ++i) g.out[i] = gelu(g.x[i]);
}

void pack_keys(const PackArgs& p) {
  const ptrdiff_t quads = quads_of(p.width), panels = panels_of(p.rows);
  std::memset(p.packed, 0, static_cast<size_t>(panels * quads * kQuadBytes));
  for (ptrdiff_t c = 0; c < panels * kPanel; ++c) p.correction[c] = 0;
  for (int row = 0; row < p.rows; ++row) {
    int32_t sum = 0;
    for (int k = 0; k < p.width; ++k) {
      const int code = p.codes[row * p.stride + k] - p.bias;
      p.packed[((row / kPanel) * quads + k / kQuad) * kQuadBytes + (row % kPanel) * kQuad + k % kQuad] =
          static_cast<int8_t>(code);
      sum += code;
    }
    p.correction[row] = (sum + p.b_shift * p.width) * p.a_qmin;
  }
}

void pack_values(const PackArgs& p) {
  const ptrdiff_t quads = quads_of(p.rows), panels = panels_of(p.width);
  std::memset(p.packed, 0, static_cast<size_t>(panels * quads * kQuadBytes));
  for (ptrdiff_t c = 0; c < panels * kPanel; ++c) p.correction[c] = p.rows * p.b_shift * p.a_qmin;
  for (int row = 0; row < p.rows; ++row) {
    for (int c = 0; c < p.width; ++c) {
      const int code = p.codes[row * p.stride + c] - p.bias;
      p.packed[((c / kPanel) * quads + row / kQuad) * kQuadBytes + (c % kPanel) * kQuad + row % kQuad] =
          static_cast<int8_t>(code);
      p.correction[c] += code * p.a_qmin;
    }
  }
}

}  // namespace

const Kernels kScalarKernels = {
    "scalar",  gemm,        quantize,               layer_norm,       softmax, gelu_all, pack_keys,
    pack_values, &kScalarIntegerKernels, &kTrainingKernels};

}  // namespace qvit
