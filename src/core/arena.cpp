#include "core/arena.h"

#include <algorithm>
#include <utility>

namespace farspan {

Arena::Scope::Scope(Scope&& other) noexcept
    : arena_(std::exchange(other.arena_, nullptr)), mark_(other.mark_), items_(other.items_) {}

Arena::Scope::~Scope() {
  if (arena_ == nullptr) return;
  arena_->used_ = mark_;
  arena_->items_.resize(std::min(items_, arena_->items_.size()));
}

Arena::Arena(Device& device, std::size_t capacity, std::string name)
    // Never nothing, so that empty tensors are defined.
    : Arena(device.allocate(std::max(capacity, kAlignment)), std::move(name)) {}

Arena::Arena(Buffer buffer, std::string name)
    : name_(std::move(name)), device_(buffer.device()), buffer_(std::move(buffer)) {}

Tensor Arena::take(DType dtype, Shape shape, std::string_view name) {
  const std::size_t bytes = static_cast<std::size_t>(shape.numel()) * size_of(dtype);
  const std::size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (used_ + rounded > buffer_.bytes())
    throw Error(
        ExitCode::kExhausted,
        {.what = fmt::format("arena '{}' of {} bytes cannot hold '{}' {} {} ({} bytes; {} in "
                             "use)",
                             name_, buffer_.bytes(), name, name_of(dtype), shape.to_string(), bytes,
                             used_),
         .fix = "this is a bug in Farspan (the dry pass sized the arena); please report it"});
  Tensor out{.data = buffer_.data() + used_, .dtype = dtype, .shape = shape, .device = device_};
  used_ += rounded;
  const bool record = device_.kind == DeviceKind::kDry;
  if (record) items_.push_back({std::string(name), rounded});
  if (used_ > high_water_) {
    high_water_ = used_;
    if (record) peak_ = items_;
  }
  return out;
}

std::vector<Arena::Item> Arena::peak_items() const {
  std::vector<Item> merged;
  for (const Item& item : peak_) {
    auto same = std::find_if(merged.begin(), merged.end(),
                             [&](const Item& m) { return m.name == item.name; });
    if (same == merged.end())
      merged.push_back(item);
    else
      same->bytes += item.bytes;
  }
  std::stable_sort(merged.begin(), merged.end(),
                   [](const Item& a, const Item& b) { return a.bytes > b.bytes; });
  return merged;
}

}  // namespace farspan
