// Bump allocation with LIFO scopes. All memory of a training step comes from arenas that a dry
// pass has sized, so that the step allocates nothing.
//
//   Arena scratch(device, bytes, "scratch");
//   {
//     Arena::Scope scope = scratch.scope();
//     Tensor t = scratch.take(DType::kF32, {rows, cols}, "logits");
//   }                                    // t's bytes are free again
//   scratch.high_water();                // the most that was ever in use, in bytes
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "core/device.h"

namespace farspan {

class Arena {
 public:
  static constexpr std::size_t kAlignment = 256;

  struct Item {
    std::string name;
    std::size_t bytes;
  };

  class Scope {
   public:
    explicit Scope(Arena& arena)
        : arena_(&arena), mark_(arena.used_), items_(arena.items_.size()) {}
    Scope(Scope&& other) noexcept;
    Scope& operator=(Scope&&) = delete;
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
    ~Scope();

   private:
    Arena* arena_;
    std::size_t mark_;
    std::size_t items_;
  };

  // `capacity` in bytes. An arena on the dry device records which items make up its peak.
  Arena(Device& device, std::size_t capacity, std::string name);
  // Over memory of another origin, such as Device::allocate_host.
  Arena(Buffer buffer, std::string name);
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Uninitialised. Throws Error(kExhausted) naming this arena and the request when full.
  Tensor take(DType dtype, Shape shape, std::string_view name);
  [[nodiscard]] Scope scope() { return Scope(*this); }

  const std::string& name() const { return name_; }
  DeviceId device() const { return device_; }
  std::size_t capacity() const { return buffer_.bytes(); }
  std::size_t used() const { return used_; }
  std::size_t high_water() const { return high_water_; }
  // What was in use at the high-water mark, equal names summed (dry arenas only; else empty).
  std::vector<Item> peak_items() const;

 private:
  std::string name_;
  DeviceId device_;
  Buffer buffer_;
  std::size_t used_ = 0;
  std::size_t high_water_ = 0;
  std::vector<Item> items_;
  std::vector<Item> peak_;
};

// Capacity for arenas of a dry pass: address space, not memory.
inline constexpr std::size_t kDryCapacity = std::size_t{1} << 42;

}  // namespace farspan
