#include "step_move.h"

#include <cstring>

namespace qvit {
namespace {

class MoveStep : public Step {
 protected:
  MoveStep(int from, int to) : from_(from), to_(to) {
    reads = {from};
    writes = {to};
  }
  int from_, to_;
};

// A row of a buffer (its last axis) that stands for zero: values and wide codes 0, narrow codes stored as -qmin.
std::vector<uint8_t> zeros(const Buffer& b) {
  std::vector<uint8_t> row(static_cast<size_t>(b.last() * b.element_bytes()), 0);
  if (!b.narrow()) return row;
  for (int64_t c = 0; c < b.last(); ++c) {
    const int group = static_cast<int>(c * b.grid->groups() / b.last());
    row[static_cast<size_t>(c)] = static_cast<uint8_t>(-b.grid->qmin(group));
  }
  return row;
}

// Rows of the output are (patch row, patch column); inside one: channel, row, column.
class PatchifyStep final : public MoveStep {
 public:
  PatchifyStep(const Buffer& image, int64_t patch, int from, int to)
      : MoveStep(from, to), channels_(image.shape[0]), height_(image.shape[1]), width_(image.shape[2]), patch_(patch) {
    columns_ = width_ / patch;
    units = height_ / patch * columns_;
    unit_cost = static_cast<double>(channels_ * patch * patch);
  }
  void run(const Frame& frame, int64_t begin, int64_t end, std::byte*) const override {
    const uint8_t* image = frame.at<uint8_t>(from_);
    uint8_t* out = frame.at<uint8_t>(to_) + begin * channels_ * patch_ * patch_;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t top = unit / columns_ * patch_, left = unit % columns_ * patch_;
      for (int64_t c = 0; c < channels_; ++c) {
        for (int64_t y = 0; y < patch_; ++y, out += patch_) {
          std::memcpy(out, image + (c * height_ + top + y) * width_ + left, static_cast<size_t>(patch_));
        }
      }
    }
  }

 private:
  int64_t channels_, height_, width_, patch_, columns_;
};

// (windows, N, parts * H * d) -> (windows, H, N, d); one unit is one row of one head.
class SplitHeadsStep final : public MoveStep {
 public:
  SplitHeadsStep(const Buffer& in, const Buffer& out, int64_t part, int from, int to) : MoveStep(from, to) {
    const int r = out.rank();
    heads_ = out.shape[r - 3];
    tokens_ = out.shape[r - 2];
    dim_ = out.shape[r - 1];
    bytes_ = out.element_bytes();
    width_ = in.last();
    column_ = part * heads_ * dim_;
    units = out.rows();
    unit_cost = static_cast<double>(dim_);
  }
  void run(const Frame& frame, int64_t begin, int64_t end, std::byte*) const override {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t token = unit % tokens_, head = unit / tokens_ % heads_, window = unit / (tokens_ * heads_);
      const int64_t from = (window * tokens_ + token) * width_ + column_ + head * dim_;
      std::memcpy(frame.at<std::byte>(to_) + unit * dim_ * bytes_, frame.at<std::byte>(from_) + from * bytes_,
                  static_cast<size_t>(dim_ * bytes_));
    }
  }

 private:
  int64_t heads_, tokens_, dim_, bytes_, width_, column_;
};

// (windows, H, N, d) -> (windows, N, H * d)
class MergeHeadsStep final : public MoveStep {
 public:
  MergeHeadsStep(const Buffer& in, int from, int to) : MoveStep(from, to) {
    const int r = in.rank();
    heads_ = in.shape[r - 3];
    tokens_ = in.shape[r - 2];
    dim_ = in.shape[r - 1];
    bytes_ = dim_ * in.element_bytes();
    units = in.rows();
    unit_cost = static_cast<double>(dim_);
  }
  void run(const Frame& frame, int64_t begin, int64_t end, std::byte*) const override {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t token = unit % tokens_, head = unit / tokens_ % heads_, window = unit / (tokens_ * heads_);
      std::memcpy(frame.at<std::byte>(to_) + ((window * tokens_ + token) * heads_ + head) * bytes_,
                  frame.at<std::byte>(from_) + unit * bytes_, static_cast<size_t>(bytes_));
    }
  }

 private:
  int64_t heads_, tokens_, dim_, bytes_;
};

class TokensStep final : public MoveStep {
 public:
  TokensStep(const Buffer& out, const Constant& prefix, const Constant& position, int from, int to)
      : MoveStep(from, to),
        channels_(out.last()),
        first_(prefix.shape[0]),
        prefix_(prefix.data),
        position_(position.data) {
    units = out.shape[0];
    unit_cost = static_cast<double>(channels_);
  }
  void run(const Frame& frame, int64_t begin, int64_t end, std::byte*) const override {
    for (int64_t row = begin; row < end; ++row) {
      float* out = frame.at<float>(to_) + row * channels_;
      if (row < first_) {
        std::memcpy(out, prefix_.data() + row * channels_, static_cast<size_t>(channels_) * sizeof(float));
        continue;
      }
      const float* x = frame.at<float>(from_) + (row - first_) * channels_;
      const float* position = position_.data() + (row - first_) * channels_;
      for (int64_t c = 0; c < channels_; ++c) out[c] = x[c] + position[c];
    }
  }

 private:
  int64_t channels_, first_;
  std::vector<float> prefix_, position_;
};

// Both directions walk the tokens of the windows; a token beyond the image is padding.
class WindowStep final : public MoveStep {
 public:
  WindowStep(const Buffer& image, const Windowing& w, bool merge, int from, int to)
      : MoveStep(from, to), rows_(image.shape[0]), columns_(image.shape[1]), w_(w), merge_(merge) {
    across_ = (columns_ + w.window[1] - 1) / w.window[1];
    const int64_t channels = image.shape[2];
    padding_ = zeros(image);
    bytes_ = static_cast<int64_t>(padding_.size());
    const int64_t down = (rows_ + w.window[0] - 1) / w.window[0];
    units = down * across_ * w.window[0] * w.window[1];
    unit_cost = static_cast<double>(channels);
  }

  void run(const Frame& frame, int64_t begin, int64_t end, std::byte*) const override {
    const size_t bytes = static_cast<size_t>(bytes_);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t inside = unit % (w_.window[0] * w_.window[1]), window = unit / (w_.window[0] * w_.window[1]);
      const int64_t row = window / across_ * w_.window[0] + inside / w_.window[1];
      const int64_t column = window % across_ * w_.window[1] + inside % w_.window[1];
      std::byte* cut = frame.at<std::byte>(merge_ ? from_ : to_) + unit * bytes_;
      if (row >= rows_ || column >= columns_) {
        if (!merge_) std::memcpy(cut, padding_.data(), bytes);
        continue;
      }
      const int64_t y = (row + w_.shift[0]) % rows_, x = (column + w_.shift[1]) % columns_;
      std::byte* image = frame.at<std::byte>(merge_ ? to_ : from_) + (y * columns_ + x) * bytes_;
      std::memcpy(merge_ ? image : cut, merge_ ? cut : image, bytes);
    }
  }

 private:
  int64_t rows_, columns_, across_ = 0, bytes_ = 0;
  Windowing w_;
  bool merge_;
  std::vector<uint8_t> padding_;
};

class PatchMergeStep final : public MoveStep {
 public:
  PatchMergeStep(const Buffer& in, int from, int to)
      : MoveStep(from, to), rows_(in.shape[0]), columns_(in.shape[1]), padding_(zeros(in)) {
    out_columns_ = (columns_ + 1) / 2;
    units = (rows_ + 1) / 2 * out_columns_;
    unit_cost = static_cast<double>(4 * in.shape[2]);
  }
  void run(const Frame& frame, int64_t begin, int64_t end, std::byte*) const override {
    const int64_t bytes = static_cast<int64_t>(padding_.size());
    for (int64_t unit = begin; unit < end; ++unit) {
      for (int64_t part = 0; part < 4; ++part) {  // (0, 0), (1, 0), (0, 1), (1, 1)
        const int64_t row = unit / out_columns_ * 2 + part % 2, column = unit % out_columns_ * 2 + part / 2;
        const bool inside = row < rows_ && column < columns_;
        const std::byte* in = frame.at<std::byte>(from_) + (row * columns_ + column) * bytes;
        std::memcpy(frame.at<std::byte>(to_) + (unit * 4 + part) * bytes,
                    inside ? static_cast<const void*>(in) : padding_.data(), padding_.size());
      }
    }
  }

 private:
  int64_t rows_, columns_, out_columns_ = 0;
  std::vector<uint8_t> padding_;
};

class SelectTokenStep final : public MoveStep {
 public:
  SelectTokenStep(const Buffer& in, int64_t index, int from, int to)
      : MoveStep(from, to), bytes_(in.last() * in.element_bytes()), index_(index) {}
  std::vector<RowRange> narrow(RowRange) override { return {{index_, index_ + 1}}; }
  void run(const Frame& frame, int64_t, int64_t, std::byte*) const override {
    std::memcpy(frame.at<std::byte>(to_), frame.at<std::byte>(from_) + index_ * bytes_, static_cast<size_t>(bytes_));
  }

 private:
  int64_t bytes_, index_;
};

// In float64 like the interpreter, token by token: tens of thousands of additions, once an image.
class MeanTokensStep final : public MoveStep {
 public:
  MeanTokensStep(const Buffer& in, int64_t start, int from, int to)
      : MoveStep(from, to), rows_(in.rows()), channels_(in.last()), start_(start) {
    scratch_bytes = static_cast<size_t>(channels_) * sizeof(double);
  }
  void run(const Frame& frame, int64_t, int64_t, std::byte* scratch) const override {
    double* sums = reinterpret_cast<double*>(scratch);
    for (int64_t c = 0; c < channels_; ++c) sums[c] = 0.0;
    for (int64_t row = start_; row < rows_; ++row) {
      const float* x = frame.at<float>(from_) + row * channels_;
      for (int64_t c = 0; c < channels_; ++c) sums[c] += x[c];
    }
    float* out = frame.at<float>(to_);
    for (int64_t c = 0; c < channels_; ++c) out[c] = static_cast<float>(sums[c] / static_cast<double>(rows_ - start_));
  }

 private:
  int64_t rows_, channels_, start_;
};

}  // namespace

std::unique_ptr<Step> make_patchify(const Buffer& image, int64_t patch, int from, int to) {
  return std::make_unique<PatchifyStep>(image, patch, from, to);
}
std::unique_ptr<Step> make_split_heads(const Buffer& in, const Buffer& out, int64_t part, int from, int to) {
  return std::make_unique<SplitHeadsStep>(in, out, part, from, to);
}
std::unique_ptr<Step> make_merge_heads(const Buffer& in, int from, int to) {
  return std::make_unique<MergeHeadsStep>(in, from, to);
}
std::unique_ptr<Step> make_tokens(const Buffer& out, const Constant& prefix, const Constant& position, int from,
                                  int to) {
  return std::make_unique<TokensStep>(out, prefix, position, from, to);
}
std::unique_ptr<Step> make_window_partition(const Buffer& image, const Windowing& w, int from, int to) {
  return std::make_unique<WindowStep>(image, w, false, from, to);
}
std::unique_ptr<Step> make_window_merge(const Buffer& image, const Windowing& w, int from, int to) {
  return std::make_unique<WindowStep>(image, w, true, from, to);
}
std::unique_ptr<Step> make_patch_merge(const Buffer& in, int from, int to) {
  return std::make_unique<PatchMergeStep>(in, from, to);
}
std::unique_ptr<Step> make_select_token(const Buffer& in, int64_t index, int from, int to) {
  return std::make_unique<SelectTokenStep>(in, index, from, to);
}
std::unique_ptr<Step> make_mean_tokens(const Buffer& in, int64_t start, int from, int to) {
  return std::make_unique<MeanTokensStep>(in, start, from, to);
}

}  // namespace qvit
