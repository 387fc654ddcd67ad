// The vocabulary in which checked.cpp states the rules of args.h.
//
//   Contract rule("rmsnorm_forward", device);
//   rule.shaped(args.x, "x", compute, {T, C});
//   rule.apart(args.y, "y", {{args.x, "x"}});
//
// Every function throws InternalError, naming operation and tensor, when its rule is broken.
#pragma once

#include <initializer_list>
#include <string_view>

#include "core/tensor.h"

namespace farspan {

struct NamedTensor {
  const Tensor& tensor;
  std::string_view name;
};

class Contract {
 public:
  Contract(std::string_view op, DeviceId device) : op_(op), device_(device) {}

  // Present (unless it has no elements), on this device.
  void present(const Tensor& t, std::string_view name) const;
  void shaped(const Tensor& t, std::string_view name, DType dtype, const Shape& shape) const;
  void dims(const Tensor& t, std::string_view name, int num_dims) const;
  // f32 or bf16, which is returned.
  DType compute(const Tensor& t, std::string_view name) const;
  // Shares no byte with the others.
  void apart(const Tensor& t, std::string_view name,
             std::initializer_list<NamedTensor> others) const;
  // Shares no byte with the others, or is exactly the same memory.
  void same_or_apart(const Tensor& t, std::string_view name,
                     std::initializer_list<NamedTensor> others) const;
  void require(bool holds, std::string_view message) const {
    if (!holds) [[unlikely]]
      fail(message);
  }
  [[noreturn]] void fail(std::string_view message) const;

 private:
  std::string_view op_;
  DeviceId device_;
};

}  // namespace farspan
