// Steps that work row by row on values: quantize, LayerNorm, softmax, GELU, add, multiply.
#pragma once

#include "step.h"

namespace qvit {

std::unique_ptr<Step> make_quantize(const Kernels& kernels, const Buffer& output, int from, int to);

// grid: a Quantize behind it, or null.
std::unique_ptr<Step> make_layer_norm(const Kernels& kernels, const Buffer& shape, const Constant& weight,
                                      const Constant& bias, double eps, const ColumnGrid* grid, int from, int to);

// One head's grid as three numbers: stored = clip(rint(p * factor + shift), 0, levels).
struct HeadGrid {
  float factor, shift, levels;
};
HeadGrid head_grid(const Grid& grid, int64_t head, int64_t heads);

std::unique_ptr<Step> make_softmax(const Kernels& kernels, const Buffer& shape, const Constant* bias,
                                   const Constant* mask, int from, int to);
std::unique_ptr<Step> make_gelu(const Kernels& kernels, const Buffer& shape, int from, int to);
std::unique_ptr<Step> make_add(const Buffer& shape, int left, int right, int to);
std::unique_ptr<Step> make_multiply(const Buffer& shape, const Constant& factor, int from, int to);

}  // namespace qvit
