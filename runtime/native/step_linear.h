// Linear with whatever follows it: scale, bias, LayerScale, GELU, residual, quantization.
#pragma once

#include "step.h"

namespace qvit {

struct LinearParts {
  const Weight* weight;
  const std::vector<float>* bias;
  const Grid* input_grid;
  int64_t rows;                                // tokens of one image
  const std::vector<float>* factor = nullptr;  // a Multiply behind it, (out,) or (1,)
  bool gelu = false;
  const ColumnGrid* grid = nullptr;            // a Quantize behind it
  int input = -1, output = -1, residual = -1;  // storages; a residual of -1 means none
};

// No output before GELU and quantization can be larger: decides whether a quantization may be fused.
double largest_value(const LinearParts& parts);

std::unique_ptr<Step> make_linear(const Kernels& kernels, const LinearParts& parts);

// Weights in the panel layout of layout.h; `blocks` divides the inputs.
Aligned<int8_t> pack_weight(const Weight& weight, int blocks);

}  // namespace qvit
