#include "kernels/contract.h"

#include <fmt/format.h>

#include <functional>

namespace farspan {
namespace {

std::string_view name_of_kind(DeviceKind kind) {
  switch (kind) {
    case DeviceKind::kCpu:
      return "cpu";
    case DeviceKind::kCuda:
      return "cuda";
    case DeviceKind::kDry:
      return "dry";
  }
  return "?";
}

bool overlap(const Tensor& a, const Tensor& b) {
  if (a.empty() || b.empty()) return false;
  const std::less<const std::byte*> before;
  return before(a.data, b.data + b.bytes()) && before(b.data, a.data + a.bytes());
}

bool same(const Tensor& a, const Tensor& b) {
  return a.data == b.data && a.bytes() == b.bytes() && a.dtype == b.dtype;
}

}  // namespace

void Contract::fail(std::string_view message) const {
  throw InternalError(__FILE__, __LINE__, "kernel contract", fmt::format("{}: {}", op_, message));
}

void Contract::present(const Tensor& t, std::string_view name) const {
  if (t.numel() == 0) return;
  if (!t.defined()) fail(fmt::format("{} is missing", name));
  if (t.device != device_)
    fail(fmt::format("{} is on {}:{}, the kernels on {}:{}", name, name_of_kind(t.device.kind),
                     t.device.index, name_of_kind(device_.kind), device_.index));
}

void Contract::shaped(const Tensor& t, std::string_view name, DType dtype,
                      const Shape& shape) const {
  if (t.dtype != dtype || !(t.shape == shape))
    fail(fmt::format("{} is {}, expected {} {}", name, t.to_string(), name_of(dtype),
                     shape.to_string()));
  present(t, name);
}

void Contract::dims(const Tensor& t, std::string_view name, int num_dims) const {
  if (t.shape.num_dims() != num_dims)
    fail(fmt::format("{} is {}, expected {} dimensions", name, t.to_string(), num_dims));
}

DType Contract::compute(const Tensor& t, std::string_view name) const {
  if (t.dtype != DType::kF32 && t.dtype != DType::kBF16)
    fail(fmt::format("{} is {}, expected f32 or bf16", name, t.to_string()));
  return t.dtype;
}

void Contract::apart(const Tensor& t, std::string_view name,
                     std::initializer_list<NamedTensor> others) const {
  for (const NamedTensor& other : others)
    if (overlap(t, other.tensor)) fail(fmt::format("{} overlaps {}", name, other.name));
}

void Contract::same_or_apart(const Tensor& t, std::string_view name,
                             std::initializer_list<NamedTensor> others) const {
  for (const NamedTensor& other : others)
    if (overlap(t, other.tensor) && !same(t, other.tensor))
      fail(fmt::format("{} overlaps {} without being the same tensor", name, other.name));
}

}  // namespace farspan
