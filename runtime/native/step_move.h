// Steps that only move bytes (codes or values) between layouts, and the mean over tokens.
#pragma once

#include "step.h"

namespace qvit {

// All take the storages `from` and `to`; sizes come from the program's buffers, which `check` has compared.
std::unique_ptr<Step> make_patchify(const Buffer& image, int64_t patch, int from, int to);
std::unique_ptr<Step> make_split_heads(const Buffer& in, const Buffer& out, int64_t part, int from, int to);
std::unique_ptr<Step> make_merge_heads(const Buffer& in, int from, int to);
std::unique_ptr<Step> make_tokens(const Buffer& out, const Constant& prefix, const Constant& position, int from,
                                  int to);

struct Windowing {
  int64_t window[2], shift[2];
};
std::unique_ptr<Step> make_window_partition(const Buffer& image, const Windowing& w, int from, int to);
std::unique_ptr<Step> make_window_merge(const Buffer& image, const Windowing& w, int from, int to);

std::unique_ptr<Step> make_patch_merge(const Buffer& in, int from, int to);
std::unique_ptr<Step> make_select_token(const Buffer& in, int64_t index, int from, int to);
std::unique_ptr<Step> make_mean_tokens(const Buffer& in, int64_t start, int from, int to);

}  // namespace qvit
