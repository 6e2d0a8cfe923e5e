// Small programs for the tests of plans, threads and checks.
#pragma once

#include "program.h"

namespace qvit {

// LayerNorm -> Quantize -> qkv -> attention -> proj -> Add, as freeze emits it.
Program block_program(int tokens, int heads, int dim, int bits);

// The same on integers from the first Quantize to the last Dequantize, with an MLP, tokens and their sum.
Program integer_program(int tokens, int heads, int dim);

// One product of a query with a key of `width` codes of 8 bits, scaled by 1: the value of their sum.
Program long_product(int64_t width, bool query_signed, bool key_signed);

// Attention by logarithms and shifts, then two-scaled codes into a Linear.
Program log2_program(int tokens, int heads, int dim);

}  // namespace qvit
