#include "core/host_stash.h"

#include <algorithm>

namespace farspan {

HostStash::HostStash(Device& device, std::size_t host_bytes)
    : device_(device),
      host_(device.allocate_host(std::max(host_bytes, Arena::kAlignment)), "host"),
      transfer_(device.make_stream()),
      all_copied_(device.make_event()) {}

void HostStash::begin(int num_layers, Arena& arena, Stream& compute) {
  num_layers_ = num_layers;
  arena_ = &arena;
  compute_ = &compute;
  for (auto& [name, lane] : lanes_) {
    lane.host.clear();
    lane.next = 0;
    for (Buffer& b : lane.buffers) {
      b.tensor = {};
      b.layer = -1;
      b.busy = false;
    }
  }
  host_scope_.reset();
  host_scope_.emplace(host_);
}

HostStash::Buffer& HostStash::buffer(std::string_view name, int layer) {
  const auto lane = lanes_.find(name);
  FARSPAN_CHECK(lane != lanes_.end(), "layer {} has no '{}'", layer, name);
  Buffer& b = lane->second.buffers[slot(layer)];
  FARSPAN_CHECK(b.layer == layer, "'{}' of layer {}, where that of layer {} is", name, layer,
                b.layer);
  return b;
}

Tensor HostStash::take(std::string_view name, int layer, DType dtype, Shape shape) {
  FARSPAN_CHECK(arena_ != nullptr, "no pass has begun");
  FARSPAN_CHECK(layer >= 0 && layer < num_layers_, "layer {} of {}", layer, num_layers_);
  Lane& lane = lanes_.try_emplace(std::string(name)).first->second;
  Buffer& b = lane.buffers[slot(layer)];
  FARSPAN_CHECK(layer == lane.next, "'{}' of layer {} before that of layer {}", name, layer,
                lane.next);
  ++lane.next;
  b.layer = layer;
  if (!b.tensor.defined()) b.tensor = arena_->take(dtype, shape, name);
  if (!b.copied) {
    b.used = device_.make_event();
    b.copied = device_.make_event();
  }
  FARSPAN_CHECK(b.tensor.dtype == dtype && b.tensor.shape == shape,
                "'{}' of layer {}: {} where {} was", name, layer, shape.to_string(),
                b.tensor.to_string());
  if (b.busy) b.copied->order_before(*compute_);
  return b.tensor;
}

void HostStash::copy(Buffer& at, std::byte* dst, const std::byte* src) {
  at.used->record(*compute_);
  at.used->order_before(*transfer_);
  device_.copy(dst, src, at.tensor.bytes(), *transfer_);
  at.copied->record(*transfer_);
  at.busy = true;
}

void HostStash::put(std::string_view name, int layer) {
  Buffer& b = buffer(name, layer);
  if (layer >= num_layers_ - kBuffers) return;
  std::vector<Tensor>& host = lanes_.find(name)->second.host;
  FARSPAN_CHECK(host.size() == static_cast<std::size_t>(layer), "'{}' of layer {} after {} others",
                name, layer, host.size());
  host.push_back(host_.take(b.tensor.dtype, b.tensor.shape, name));
  copy(b, host.back().data, b.tensor.data);
}

void HostStash::arrive(int layer) {
  for (auto& [name, lane] : lanes_) {
    Buffer& b = lane.buffers[slot(layer)];
    if (b.layer == layer && b.busy) b.copied->order_before(*compute_);
  }
}

void HostStash::release(int layer) {
  const int next = layer - kBuffers;
  if (next < 0) return;
  for (auto& [name, lane] : lanes_) {
    Buffer& b = lane.buffers[slot(layer)];
    if (b.layer != layer) continue;  // this layer has none: what the buffer holds stays
    b.layer = next;
    copy(b, b.tensor.data, lane.host[static_cast<std::size_t>(next)].data);
  }
}

void HostStash::end() {
  all_copied_->record(*transfer_);
  all_copied_->order_before(*compute_);
  arena_ = nullptr;
  compute_ = nullptr;
}

}  // namespace farspan
