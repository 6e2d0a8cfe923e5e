#include "step_attention.h"

#include <algorithm>

#include "step_rows.h"

namespace qvit {
namespace {

// One of the two products, all heads: the arrays that a GemmArgs points to, per head and column.
class HeadProduct {
 public:
  HeadProduct() = default;
  HeadProduct(int64_t heads, int64_t inputs, int64_t columns, const Grid& left, const Grid& right, double factor,
              const Grid* out)
      : inputs_(inputs),
        columns_(columns),
        padded_(panels_of(columns) * kPanel),
        panels_bytes_(panels_bytes(inputs, columns)),
        codes_(out != nullptr) {
    for (int64_t h = 0; h < heads; ++h) {
      const int l = group_of(left, h, heads), r = group_of(right, h, heads);
      HeadGrid grid = {1.0f, 0.0f, 0.0f};
      if (out != nullptr) grid = head_grid(*out, h, heads);
      const double scale = static_cast<double>(left.scale[l]) * right.scale[r] * factor * grid.factor;
      scale_.insert(scale_.end(), padded_, static_cast<float>(scale));
      bias_.insert(bias_.end(), padded_, grid.shift);
      levels_.insert(levels_.end(), padded_, grid.levels);
      const int run = run_length(left.bits[l], right.bits[r]);
      runs_.insert(runs_.end(), panels_of(columns), static_cast<int16_t>(run));
      wide_ |= run <= 1;
      b_shift_.push_back(b_shift_of(right, r));
    }
  }

  size_t scratch_bytes() const { return wide_ ? sizeof(int16_t) * kChunkRows * wide_stride(inputs_) : 0; }
  int64_t head_bytes() const { return packed_bytes(inputs_, columns_); }
  bool codes() const { return codes_; }

  GemmArgs args(int64_t head, const uint8_t* a, int64_t stride, int64_t rows, const int8_t* packed,
                std::byte* scratch) const {
    GemmArgs g{};
    g.a = a;
    g.a_stride = stride;
    g.rows = static_cast<int>(rows);
    g.b = packed;
    g.columns = static_cast<int>(columns_);
    g.blocks = 1;
    g.block_width = static_cast<int>(inputs_);
    g.b_shift = b_shift_[head];
    g.runs = runs_.data() + head * panels_of(columns_);
    g.correction = reinterpret_cast<const int32_t*>(packed + panels_bytes_);
    g.scale = scale_.data() + head * padded_;
    g.bias = bias_.data() + head * padded_;
    g.column_stride = padded_;
    g.levels = levels_.data() + head * padded_;
    g.epilogue = codes_ ? Epilogue::kCodes : Epilogue::kValues;
    g.chunk_rows = kChunkRows;
    g.wide = reinterpret_cast<int16_t*>(scratch);
    return g;
  }

 private:
  int64_t inputs_ = 0, columns_ = 0, padded_ = 0, panels_bytes_ = 0;
  bool codes_ = false, wide_ = false;
  std::vector<float> scale_, bias_, levels_;
  std::vector<int16_t> runs_;
  std::vector<int> b_shift_;
};

// Units are (window, head, block of query rows), so that single large heads are divided among threads too.
class HeadStep : public Step {
 protected:
  static constexpr int64_t kBlockRows = 30;

  explicit HeadStep(const HeadShape& shape) : shape_(shape), tokens_(shape.tokens) {
    const int64_t wanted = (shape.tokens + kBlockRows - 1) / kBlockRows;
    block_rows_ = round_up((shape.tokens + wanted - 1) / wanted, kTileRows);
    blocks_ = (shape.tokens + block_rows_ - 1) / block_rows_;
    units = shape.windows * shape.heads * blocks_;
    unit_cost = static_cast<double>(block_rows_ * shape.keys * (shape.width + 20));
  }
  // Rows of the (windows x tokens) output become blocks of queries; with many windows, all of them are run.
  std::vector<RowRange> narrow(RowRange rows) override {
    std::vector<RowRange> needs(reads.size(), kAllRows);
    if (rows == kAllRows || shape_.windows > 1 || !rows_of_output_) return needs;
    first_row_ = rows.begin;
    tokens_ = rows.end;
    blocks_ = (rows.end - rows.begin + block_rows_ - 1) / block_rows_;
    units = shape_.heads * blocks_;
    return needs;  // queries, keys and values are columns of one storage: all of it
  }

  struct Rows {
    int64_t window, head, begin, end;
  };
  Rows rows_of(int64_t unit) const {
    const int64_t block = unit % blocks_, which = unit / blocks_;
    return {which / shape_.heads, which % shape_.heads, first_row_ + block * block_rows_,
            std::min(tokens_, first_row_ + (block + 1) * block_rows_)};
  }
  int64_t packed_at(const Rows& r, int64_t head_bytes) const { return (r.window * shape_.heads + r.head) * head_bytes; }

  void put(GemmArgs& g, const Frame& frame, const HeadPlace& out, const Rows& r, int64_t row) const {
    const int64_t at = out.at(r.window, r.head, row);
    if (g.epilogue == Epilogue::kCodes) {
      g.codes = frame.at<uint8_t>(out.storage) + at;
    } else {
      g.out = frame.at<float>(out.storage) + at;
    }
    g.out_stride = out.row_stride;
  }

  HeadShape shape_;
  int64_t block_rows_, blocks_, first_row_ = 0, tokens_;
  bool rows_of_output_ = false;  // the output's rows are tokens: merged heads
};

class AttentionStep final : public HeadStep {
 public:
  AttentionStep(const Kernels& kernels, const AttentionParts& p)
      : HeadStep(p.shape),
        kernels_(kernels),
        query_(p.query),
        output_(p.output),
        keys_(p.keys),
        values_(p.values),
        scores_(p.shape.heads, p.shape.width, p.shape.keys, *p.query_grid, *p.key_grid, p.factor, nullptr),
        product_(p.shape.heads, p.shape.keys, p.shape.width, *p.attention_grid, *p.value_grid, 1.0, p.output_grid) {
    for (int64_t h = 0; h < shape_.heads; ++h) grids_.push_back(head_grid(*p.attention_grid, h, shape_.heads));
    if (p.bias != nullptr) bias_ = p.bias->data;
    if (p.mask != nullptr) mask_ = p.mask->data;
    rows_of_output_ = p.output.row_stride != shape_.width || shape_.heads == 1;
    row_ = round_up(shape_.keys, kPanel);
    wide_at_ = static_cast<size_t>(round_up(kTileRows * row_ * 5 + kSlack, 64));
    scratch_bytes = wide_at_ + std::max(scores_.scratch_bytes(), product_.scratch_bytes());
    reads = {query_.storage, keys_, values_};
    writes = {output_.storage};
  }

  void run(const Frame& frame, int64_t begin, int64_t end, std::byte* scratch) const override {
    float* scores = reinterpret_cast<float*>(scratch);
    uint8_t* codes = reinterpret_cast<uint8_t*>(scratch + kTileRows * row_ * 4);
    std::byte* wide = scratch + wide_at_;
    for (int64_t unit = begin; unit < end; ++unit) {
      const Rows r = rows_of(unit);
      const int8_t* keys = frame.at<int8_t>(keys_) + packed_at(r, scores_.head_bytes());
      const int8_t* values = frame.at<int8_t>(values_) + packed_at(r, product_.head_bytes());
      for (int64_t row = r.begin; row < r.end; row += kTileRows) {
        const int64_t rows = std::min<int64_t>(kTileRows, r.end - row);
        const uint8_t* q = frame.at<uint8_t>(query_.storage) + query_.at(r.window, r.head, row);
        GemmArgs first = scores_.args(r.head, q, query_.row_stride, rows, keys, wide);
        first.out = scores;
        first.out_stride = row_;
        kernels_.gemm(first);

        SoftmaxArgs s{};
        s.x = scores;
        s.x_stride = s.out_stride = row_;
        s.rows = static_cast<int>(rows);
        s.width = static_cast<int>(shape_.keys);
        if (!bias_.empty()) s.bias = bias_.data() + (r.head * shape_.tokens + row) * shape_.keys;
        if (!mask_.empty()) s.mask = mask_.data() + (r.window * shape_.tokens + row) * shape_.keys;
        s.codes = codes;
        s.factor = grids_[r.head].factor;
        s.shift = grids_[r.head].shift;
        s.levels = grids_[r.head].levels;
        kernels_.softmax(s);

        GemmArgs second = product_.args(r.head, codes, row_, rows, values, wide);
        put(second, frame, output_, r, row);
        kernels_.gemm(second);
      }
    }
  }

 private:
  const Kernels& kernels_;
  HeadPlace query_, output_;
  int keys_, values_;
  HeadProduct scores_, product_;
  std::vector<HeadGrid> grids_;
  std::vector<float> bias_, mask_;
  int64_t row_ = 0;
  size_t wide_at_ = 0;
};

class QueryKeyStep final : public HeadStep {
 public:
  QueryKeyStep(const Kernels& kernels, const AttentionParts& p)
      : HeadStep(p.shape),
        kernels_(kernels),
        query_(p.query),
        output_(p.output),
        keys_(p.keys),
        scores_(p.shape.heads, p.shape.width, p.shape.keys, *p.query_grid, *p.key_grid, p.factor, nullptr) {
    scratch_bytes = scores_.scratch_bytes();
    reads = {query_.storage, keys_};
    writes = {output_.storage};
  }

  void run(const Frame& frame, int64_t begin, int64_t end, std::byte* scratch) const override {
    for (int64_t unit = begin; unit < end; ++unit) {
      const Rows r = rows_of(unit);
      const int8_t* keys = frame.at<int8_t>(keys_) + packed_at(r, scores_.head_bytes());
      const uint8_t* q = frame.at<uint8_t>(query_.storage) + query_.at(r.window, r.head, r.begin);
      GemmArgs g = scores_.args(r.head, q, query_.row_stride, r.end - r.begin, keys, scratch);
      put(g, frame, output_, r, r.begin);
      kernels_.gemm(g);
    }
  }

 private:
  const Kernels& kernels_;
  HeadPlace query_, output_;
  int keys_;
  HeadProduct scores_;
};

class AttentionValueStep final : public HeadStep {
 public:
  AttentionValueStep(const Kernels& kernels, const AttentionParts& p, int attention)
      : HeadStep(p.shape),
        kernels_(kernels),
        attention_(dense_heads(attention, p.shape.heads, p.shape.tokens, p.shape.keys)),
        output_(p.output),
        values_(p.values),
        product_(p.shape.heads, p.shape.keys, p.shape.width, *p.attention_grid, *p.value_grid, 1.0, p.output_grid) {
    scratch_bytes = product_.scratch_bytes();
    reads = {attention, values_};
    writes = {output_.storage};
  }

  void run(const Frame& frame, int64_t begin, int64_t end, std::byte* scratch) const override {
    for (int64_t unit = begin; unit < end; ++unit) {
      const Rows r = rows_of(unit);
      const int8_t* values = frame.at<int8_t>(values_) + packed_at(r, product_.head_bytes());
      const uint8_t* a = frame.at<uint8_t>(attention_.storage) + attention_.at(r.window, r.head, r.begin);
      GemmArgs g = product_.args(r.head, a, attention_.row_stride, r.end - r.begin, values, scratch);
      put(g, frame, output_, r, r.begin);
      kernels_.gemm(g);
    }
  }

 private:
  const Kernels& kernels_;
  HeadPlace attention_, output_;
  int values_;
  HeadProduct product_;
};

}  // namespace

HeadPlace dense_heads(int storage, int64_t heads, int64_t rows, int64_t width) {
  return {storage, 0, heads * rows * width, rows * width, width};
}

std::unique_ptr<Step> make_attention(const Kernels& kernels, const AttentionParts& parts) {
  return std::make_unique<AttentionStep>(kernels, parts);
}
std::unique_ptr<Step> make_query_key(const Kernels& kernels, const AttentionParts& parts) {
  return std::make_unique<QueryKeyStep>(kernels, parts);
}
std::unique_ptr<Step> make_attention_value(const Kernels& kernels, const AttentionParts& parts, int attention) {
  return std::make_unique<AttentionValueStep>(kernels, parts, attention);
}

}  // namespace qvit
