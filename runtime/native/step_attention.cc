#include "step_attention.h"

#include <algorithm>

#include "head_step.h"
#include "step_rows.h"

namespace qvit {
namespace {

// The same with the epilogues that make values, or codes of values.
class ValueProduct {
 public:
  ValueProduct() = default;
  ValueProduct(int64_t heads, int64_t inputs, int64_t columns, const Grid& left, const Grid& right, double factor,
               const Grid* out)
      : product_(heads, inputs, columns, left, right),
        padded_(panels_of(columns) * kPanel),
        epilogue_(out != nullptr ? Epilogue::kCodes : Epilogue::kValues) {
    for (int64_t h = 0; h < heads; ++h) {
      const int l = group_of(left, h, heads), r = group_of(right, h, heads);
      HeadGrid grid = {1.0f, 0.0f, 0.0f};
      if (out != nullptr) grid = head_grid(*out, h, heads);
      const double scale = static_cast<double>(left.scale[l]) * right.scale[r] * factor * grid.factor;
      scale_.insert(scale_.end(), padded_, static_cast<float>(scale));
      bias_.insert(bias_.end(), padded_, grid.shift);
      levels_.insert(levels_.end(), padded_, grid.levels);
    }
  }

  size_t scratch_bytes() const { return product_.scratch_bytes(); }
  int64_t head_bytes() const { return product_.head_bytes(); }

  GemmArgs args(int64_t head, const uint8_t* a, int64_t stride, int64_t rows, const int8_t* packed,
                std::byte* scratch) const {
    GemmArgs g = product_.args(head, a, stride, rows, packed, scratch);
    g.scale = scale_.data() + head * padded_;
    g.bias = bias_.data() + head * padded_;
    g.levels = levels_.data() + head * padded_;
    g.epilogue = epilogue_;
    return g;
  }

 private:
  HeadProduct product_;
  int64_t padded_ = 0;
  Epilogue epilogue_ = Epilogue::kValues;
  std::vector<float> scale_, bias_, levels_;
};

void put(GemmArgs& g, const Frame& frame, const HeadPlace& out, int64_t at) {
  if (g.epilogue == Epilogue::kCodes) {
    g.codes = frame.at<uint8_t>(out.storage) + at;
  } else {
    g.out = frame.at<float>(out.storage) + at;
  }
  g.out_stride = out.row_stride;
}

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
        put(second, frame, output_, output_.at(r.window, r.head, row));
        kernels_.gemm(second);
      }
    }
  }

 private:
  const Kernels& kernels_;
  HeadPlace query_, output_;
  int keys_, values_;
  ValueProduct scores_, product_;
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
      put(g, frame, output_, output_.at(r.window, r.head, r.begin));
      kernels_.gemm(g);
    }
  }

 private:
  const Kernels& kernels_;
  HeadPlace query_, output_;
  int keys_;
  ValueProduct scores_;
};

// An attention map of two regions (QuantizeRegions) is two planes of `keys` columns: the second product adds to the
// first.
class AttentionValueStep final : public HeadStep {
 public:
  AttentionValueStep(const Kernels& kernels, const AttentionParts& p, int attention)
      : HeadStep(p.shape), kernels_(kernels), output_(p.output), values_(p.values) {
    const Grid& grid = *p.attention_grid;
    for (int plane = 0; plane < p.planes; ++plane) {
      const Grid one = p.planes == 1 ? grid : grid.group(plane);
      products_.emplace_back(p.shape.heads, p.shape.keys, p.shape.width, one, *p.value_grid, 1.0, p.output_grid);
      scratch_bytes = std::max(scratch_bytes, products_.back().scratch_bytes());
    }
    attention_ = dense_heads(attention, p.shape.heads, p.shape.tokens, p.planes * p.shape.keys);
    reads = {attention, values_};
    writes = {output_.storage};
  }

  void run(const Frame& frame, int64_t begin, int64_t end, std::byte* scratch) const override {
    for (int64_t unit = begin; unit < end; ++unit) {
      const Rows r = rows_of(unit);
      const int8_t* values = frame.at<int8_t>(values_) + packed_at(r, products_[0].head_bytes());
      const uint8_t* a = frame.at<uint8_t>(attention_.storage) + attention_.at(r.window, r.head, r.begin);
      for (const ValueProduct& product : products_) {
        GemmArgs g = product.args(r.head, a, attention_.row_stride, r.end - r.begin, values, scratch);
        put(g, frame, output_, output_.at(r.window, r.head, r.begin));
        if (&product != &products_[0]) {
          g.epilogue = Epilogue::kAdd;
          g.residual = g.out;
        }
        kernels_.gemm(g);
        a += shape_.keys;
      }
    }
  }

 private:
  const Kernels& kernels_;
  HeadPlace attention_, output_;
  int values_;
  std::vector<ValueProduct> products_;
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
