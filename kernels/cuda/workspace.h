// Device memory that an operation needs while it runs, kept from call to call.
//
//   Workspace& space = ...;
//   auto* partials = space.take<float>({groups * c}, stream);   // valid until the next take
//
// One piece of memory per queue: work of two queues may overlap in time. A piece that has become
// too small is not given back, because work that was recorded (a CUDA graph) may still name it;
// each new one is at least twice as large, so all together hold at most twice what the largest need
// was.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <vector>

#include "core/device.h"

namespace farspan::cuda {

class Workspace {
 public:
  // `device` must outlive this object.
  explicit Workspace(Device& device) : device_(device) {}

  // At a multiple of 256 bytes; not initialised.
  std::byte* at_least(std::size_t bytes, const Stream& stream) {
    std::vector<Buffer>& pieces = pieces_[stream.native_handle()];
    if (pieces.empty() || pieces.back().bytes() < bytes) {
      const std::size_t before = pieces.empty() ? 0 : pieces.back().bytes();
      pieces.push_back(device_.allocate(std::max(bytes, 2 * before)));
    }
    return pieces.back().data();
  }

 private:
  Device& device_;
  std::map<void*, std::vector<Buffer>> pieces_;
};

// Cuts a workspace into arrays, each at a multiple of 256 bytes:
//   WorkspaceLayout layout;
//   const std::size_t keys = layout.add<std::int32_t>(n), counts = layout.add<std::int32_t>(m);
//   std::byte* base = space.at_least(layout.bytes(), stream);
class WorkspaceLayout {
 public:
  template <typename T>
  std::size_t add(std::int64_t n) {
    const std::size_t at = bytes_;
    bytes_ += (static_cast<std::size_t>(n) * sizeof(T) + 255) / 256 * 256;
    return at;
  }
  std::size_t bytes() const { return bytes_; }

 private:
  std::size_t bytes_ = 0;
};

}  // namespace farspan::cuda
