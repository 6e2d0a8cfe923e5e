// LinearAccumulate with whatever follows it: the sums themselves, their Requantize, or their AddRequantize.
#pragma once

#include "code_tables.h"
#include "linear_base.h"

namespace qvit {

struct LinearAccumulateParts {
  LinearOperands operands;
  const Integers* bias;  // may be null
  const Buffer* sums;
  int output = -1;
  const Buffer* requantized = nullptr;  // the output of the op behind it; null: the sums are wanted
  const Integers *multiplier = nullptr, *shift = nullptr;
  const Buffer* residual = nullptr;  // wide codes: the other side of an AddRequantize, or null
  const Integers *residual_multiplier = nullptr, *residual_shift = nullptr;
  int residual_storage = -1;
};

std::unique_ptr<Step> make_linear_accumulate(const Kernels& kernels, const LinearAccumulateParts& parts);

}  // namespace qvit
