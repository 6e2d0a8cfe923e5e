// What Linear and LinearAccumulate share: packed weights, corrections, and how rows or columns are divided among
// threads.
#pragma once

#include "step.h"

namespace qvit {

struct LinearOperands {
  const Weight* weight;
  const Grid* input_grid;
  int64_t rows;    // tokens of one image
  int copies = 1;  // 2: the input is two byte planes (QuantizeRegions) that meet the same weights
  int input = -1;  // storage
};

class LinearBase : public Step {
 public:
  // A few rows of many: their columns are divided, as if there had never been more rows.
  std::vector<RowRange> narrow(RowRange rows) override;
  void run(const Frame& frame, int64_t begin, int64_t end, std::byte* scratch) const override;

 protected:
  LinearBase(const Kernels& kernels, const LinearOperands& operands);
  // Say what becomes of the sums from column `column` on; `at` is the first element of the output.
  virtual void finish(GemmArgs& g, const Frame& frame, int64_t column, int64_t at) const = 0;

  int64_t padded() const { return panels_of(columns_) * kPanel; }

  const Kernels& kernels_;
  int input_;
  int64_t rows_, inputs_, columns_;
  int blocks_;                       // of inputs with one input scale and one weight scale each, copies included
  std::vector<int32_t> correction_;  // [block][padded()]

 private:
  void divide_columns(RowRange rows);
  void prepare_sums(const LinearOperands& p);

  int64_t width_, panel_bytes_;
  int chunk_rows_ = kChunkRows;
  bool any_wide_ = false;
  RowRange all_ = kAllRows;  // the rows of every task when columns are divided
  Aligned<int8_t> packed_;
  std::vector<int16_t> runs_;
};

// The blocks of one copy of the inputs, and where block `block` of all copies has its input group and weight columns.
int blocks_of(const LinearOperands& operands);
int input_group_of(const LinearOperands& operands, int block);
int column_group_of(const LinearOperands& operands, int block);

}  // namespace qvit
