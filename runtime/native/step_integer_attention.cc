#include "step_integer_attention.h"

#include <algorithm>

#include "code_row.h"
#include "head_step.h"

namespace qvit {
namespace {

// A product of heads with an integer epilogue.
class SumsProduct {
 public:
  SumsProduct() = default;
  SumsProduct(const HeadShape& shape, bool values, const SumsParts& p)
      : product_(shape.heads, values ? shape.keys : shape.width, values ? shape.width : shape.keys, *p.left, *p.right),
        heads_(shape.heads),
        tokens_(shape.tokens),
        narrow_(p.requantized != nullptr && p.requantized->narrow()) {
    if (p.requantized == nullptr) return;
    epilogue_ = Epilogue::kRequantize;
    scale_ = RescaleTable(*p.sums, *p.multiplier, *p.shift);
    clip_ = ClipTable(*p.requantized);
  }

  size_t scratch_bytes() const { return product_.scratch_bytes(); }
  int64_t head_bytes() const { return product_.head_bytes(); }
  bool narrow() const { return narrow_; }

  // Rows of a head with codes at `a`, to `out`, whose rows are `out_stride` apart.
  void run(const Kernels& kernels, int64_t window, int64_t head, const uint8_t* a, int64_t stride, int64_t rows,
           const int8_t* packed, const MutableCodeRow& out, int64_t out_stride, std::byte* scratch) const {
    GemmArgs g = product_.args(head, a, stride, rows, packed, scratch);
    g.epilogue = epilogue_;
    g.integer.out = out;
    g.out_stride = out_stride;
    if (epilogue_ == Epilogue::kRequantize) {
      const int64_t row = (window * heads_ + head) * tokens_;  // rows of a head share a group
      g.integer.scale = scale_.row(row);
      g.integer.clip = clip_.row(row);
    }
    kernels.gemm(g);
  }

 private:
  HeadProduct product_;
  int64_t heads_ = 1, tokens_ = 1;
  bool narrow_ = false;
  Epilogue epilogue_ = Epilogue::kSums;
  RescaleTable scale_;
  ClipTable clip_;
};

MutableCodeRow codes_at(const Frame& frame, bool narrow, int storage, int64_t at) {
  if (narrow) return {frame.at<uint8_t>(storage) + at, nullptr};
  return {nullptr, frame.at<int32_t>(storage) + at};
}

class HeadSumsStep final : public HeadStep {
 public:
  HeadSumsStep(const Kernels& kernels, const HeadShape& shape, bool values, const SumsParts& parts,
               const HeadPlace& left, int right, const HeadPlace& out, bool merged)
      : HeadStep(shape), kernels_(kernels), left_(left), out_(out), right_(right), product_(shape, values, parts) {
    rows_of_output_ = merged;
    scratch_bytes = product_.scratch_bytes();
    reads = {left.storage, right};
    writes = {out.storage};
  }

  void run(const Frame& frame, int64_t begin, int64_t end, std::byte* scratch) const override {
    for (int64_t unit = begin; unit < end; ++unit) {
      const Rows r = rows_of(unit);
      product_.run(kernels_, r.window, r.head, frame.at<uint8_t>(left_.storage) + left_.at(r.window, r.head, r.begin),
                   left_.row_stride, r.end - r.begin, frame.at<int8_t>(right_) + packed_at(r, product_.head_bytes()),
                   codes_at(frame, product_.narrow(), out_.storage, out_.at(r.window, r.head, r.begin)),
                   out_.row_stride, scratch);
    }
  }

 private:
  const Kernels& kernels_;
  HeadPlace left_, out_;
  int right_;
  SumsProduct product_;
};

// scratch: scores (6 rows, 4 bytes a code) | map (6 rows of bytes) | exponentials of a row | the GEMM's
class IntegerAttentionStep final : public HeadStep {
 public:
  IntegerAttentionStep(const Kernels& kernels, const IntegerAttentionParts& p)
      : HeadStep(p.shape),
        kernels_(kernels),
        query_(p.query),
        output_(p.output),
        keys_(p.keys),
        values_(p.values),
        scores_(p.shape, false, p.scores),
        product_(p.shape, true, p.product),
        constants_(*p.scores.requantized, p.constants),
        unit_(static_cast<int32_t>(p.unit)),
        fraction_(p.fraction),
        bits_(p.map->grid->bits),
        map_groups_(*p.map),
        row_(round_up(p.shape.keys, kPanel)) {
    rows_of_output_ = p.merged;
    map_at_ = static_cast<size_t>(kTileRows * row_) * sizeof(int32_t);
    exponentials_at_ = static_cast<size_t>(round_up(static_cast<int64_t>(map_at_) + kTileRows * row_ + kSlack, 64));
    wide_at_ = static_cast<size_t>(round_up(static_cast<int64_t>(exponentials_at_) + row_ * 4, 64));
    scratch_bytes = wide_at_ + std::max(scores_.scratch_bytes(), product_.scratch_bytes());
    reads = {query_.storage, keys_, values_};
    writes = {output_.storage};
  }

  void run(const Frame& frame, int64_t begin, int64_t end, std::byte* scratch) const override {
    const bool narrow = scores_.narrow();
    MutableCodeRow scores{};
    if (narrow) {
      scores.narrow = reinterpret_cast<uint8_t*>(scratch);
    } else {
      scores.wide = reinterpret_cast<int32_t*>(scratch);
    }
    uint8_t* map = reinterpret_cast<uint8_t*>(scratch + map_at_);
    for (int64_t unit = begin; unit < end; ++unit) {
      const Rows r = rows_of(unit);
      const int8_t* keys = frame.at<int8_t>(keys_) + packed_at(r, scores_.head_bytes());
      const int8_t* values = frame.at<int8_t>(values_) + packed_at(r, product_.head_bytes());
      for (int64_t row = r.begin; row < r.end; row += kTileRows) {
        const int64_t rows = std::min<int64_t>(kTileRows, r.end - row);
        scores_.run(kernels_, r.window, r.head, frame.at<uint8_t>(query_.storage) + query_.at(r.window, r.head, row),
                    query_.row_stride, rows, keys, scores, row_, scratch + wide_at_);
        for (int64_t i = 0; i < rows; ++i) {
          const CodeRow x =
              narrow ? CodeRow{scores.narrow + i * row_, nullptr} : CodeRow{nullptr, scores.wide + i * row_};
          softmax_row(x, (r.window * shape_.heads + r.head) * shape_.tokens + row + i, map + i * row_,
                      reinterpret_cast<int32_t*>(scratch + exponentials_at_));
        }
        product_.run(kernels_, r.window, r.head, map, row_, rows, values,
                     codes_at(frame, product_.narrow(), output_.storage, output_.at(r.window, r.head, row)),
                     output_.row_stride, scratch + wide_at_);
      }
    }
  }

 private:
  void softmax_row(const CodeRow& x, int64_t row, uint8_t* map, int32_t* exponentials) const {
    kernels_.integer->shiftmax({x, static_cast<int>(shape_.keys), constants_.bias(row), constants_.mask(row), unit_,
                                fraction_, bits_[static_cast<size_t>(map_groups_.of(row))], map, exponentials});
  }

  const Kernels& kernels_;
  HeadPlace query_, output_;
  int keys_, values_;
  SumsProduct scores_, product_;
  ScoreConstants constants_;
  int32_t unit_;
  int fraction_;
  std::vector<int> bits_;
  RowGroups map_groups_;
  int64_t row_;
  size_t map_at_ = 0, exponentials_at_ = 0, wide_at_ = 0;
};

}  // namespace

bool head_rows_share_group(const Buffer& b) { return b.grid->groups() == 1 || b.grid->axis != b.rank() - 2; }

std::unique_ptr<Step> make_head_sums(const Kernels& kernels, const HeadShape& shape, bool values,
                                     const SumsParts& parts, const HeadPlace& left, int right, const HeadPlace& out,
                                     bool merged) {
  return std::make_unique<HeadSumsStep>(kernels, shape, values, parts, left, right, out, merged);
}
std::unique_ptr<Step> make_integer_attention(const Kernels& kernels, const IntegerAttentionParts& parts) {
  return std::make_unique<IntegerAttentionStep>(kernels, parts);
}

}  // namespace qvit
