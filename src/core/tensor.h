// A view of dense row-major elements: never an owner. Arenas and buffers own (core/arena.h).
//
//   Tensor q = arena.take(DType::kBF16, {T, Hq, D}, "q");
//   float* p = t.ptr<float>();            // CHECKs the element type
//   Tensor tail = q.rows(first, count);   // along the outermost dimension
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "core/dtype.h"
#include "core/shape.h"

namespace farspan {

enum class DeviceKind : std::uint8_t { kCpu, kCuda, kDry };

struct DeviceId {
  DeviceKind kind = DeviceKind::kCpu;
  int index = 0;
  friend bool operator==(const DeviceId&, const DeviceId&) = default;
};

struct Tensor {
  std::byte* data = nullptr;
  DType dtype = DType::kF32;
  Shape shape{0};
  DeviceId device{};

  bool empty() const { return data == nullptr || shape.numel() == 0; }
  bool defined() const { return data != nullptr; }
  std::int64_t numel() const { return shape.numel(); }
  std::size_t bytes() const { return static_cast<std::size_t>(numel()) * size_of(dtype); }

  template <typename T>
  T* ptr() const {
    FARSPAN_CHECK(DTypeOf<T>::value == dtype, "tensor of {} read as {}", name_of(dtype),
                  name_of(DTypeOf<T>::value));
    return reinterpret_cast<T*>(data);
  }

  // Rows [begin, begin + count) of the outermost dimension.
  Tensor rows(std::int64_t begin, std::int64_t count) const;
  // The same elements under another shape of equal size.
  Tensor view(Shape new_shape) const;

  std::string to_string() const;  // "bf16 (128, 4, 32)"
};

// A host tensor over memory owned elsewhere, for tests and staging.
template <typename T>
Tensor host_tensor(T* data, Shape shape) {
  return {.data = reinterpret_cast<std::byte*>(data),
          .dtype = DTypeOf<T>::value,
          .shape = shape,
          .device = {DeviceKind::kCpu, 0}};
}

}  // namespace farspan
