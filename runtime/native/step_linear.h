// Linear with whatever follows it: scale, bias, LayerScale, GELU, residual, quantization.
#pragma once

#include "linear_base.h"

namespace qvit {

struct LinearParts {
  LinearOperands operands;
  const std::vector<float>* bias;
  const std::vector<float>* factor = nullptr;  // a Multiply behind it, (out,) or (1,)
  bool gelu = false;
  const ColumnGrid* grid = nullptr;  // a Quantize behind it
  int output = -1, residual = -1;    // storages; a residual of -1 means none
};

// No output before GELU and quantization can be larger: decides whether a quantization may be fused.
double largest_value(const LinearParts& parts);

std::unique_ptr<Step> make_linear(const Kernels& kernels, const LinearParts& parts);

}  // namespace qvit
