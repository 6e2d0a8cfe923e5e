// Attention: scores, softmax, quantization and the product with the values in one pass over packed keys and values.
//
// Six rows of one head at a time: their scores (6 x N floats) and their codes (6 x N bytes) stay in the first-level
// cache, so that the (H, N, N) maps, the largest tensors of a ViT, are never written to memory.
//
//   q rows -> [gemm with packed keys] -> scores -> [softmax + quantize] -> codes -> [gemm with packed values] -> out
#pragma once

#include "step.h"
#include "step_pack.h"

namespace qvit {

// The place of a dense (windows, heads, rows, width) buffer.
HeadPlace dense_heads(int storage, int64_t heads, int64_t rows, int64_t width);

struct AttentionParts {
  HeadShape shape;
  const Grid *query_grid, *key_grid;  // scores, unless null
  double factor;
  const Constant *bias, *mask;  // of the softmax, may be null
  const Grid *attention_grid, *value_grid;
  int planes = 1;           // 2: the map has two regions, see QuantizeRegions; then there is no output grid
  const Grid* output_grid;  // null: values
  HeadPlace query, output;
  int keys, values;  // storages written by make_pack
};

std::unique_ptr<Step> make_attention(const Kernels& kernels, const AttentionParts& parts);

// Scores alone, and attention codes (dense) times values alone.
std::unique_ptr<Step> make_query_key(const Kernels& kernels, const AttentionParts& parts);
std::unique_ptr<Step> make_attention_value(const Kernels& kernels, const AttentionParts& parts, int attention);

}  // namespace qvit
