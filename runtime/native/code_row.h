// Rows of codes in a frame, narrow or wide.
#pragma once

#include "kernels_integer.h"
#include "step.h"

namespace qvit {

struct CodePlace {
  int storage = -1;
  bool narrow = false;

  CodePlace() = default;
  CodePlace(const Buffer& buffer, int storage) : storage(storage), narrow(buffer.narrow()) {}
  CodeRow row(const Frame& frame, int64_t element) const {
    if (storage < 0) return {nullptr, nullptr};
    if (narrow) return {frame.at<uint8_t>(storage) + element, nullptr};
    return {nullptr, frame.at<int32_t>(storage) + element};
  }
  MutableCodeRow out(const Frame& frame, int64_t element) const {
    if (narrow) return {frame.at<uint8_t>(storage) + element, nullptr};
    return {nullptr, frame.at<int32_t>(storage) + element};
  }
};

}  // namespace qvit
