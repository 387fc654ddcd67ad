// Kernels that refuse what args.h does not allow, before any work: shapes, dtypes, devices, missing
// tensors and outputs that overlap what they must not. make_backend wraps every backend in it.
//
//   auto kernels = make_checked(std::move(inner), {DeviceKind::kCpu, 0});
//   kernels->matmul(...);   // throws InternalError("matmul: b is bf16 (3, 4), expected bf16 (4,
//   *)")
//
// A refusal is a bug of the caller, so it is an InternalError that names the operation, the tensor
// and both shapes. Costs about 0.1 microseconds per call and reads no tensor's memory.
#pragma once

#include <memory>

#include "kernels/kernels.h"

namespace farspan {

std::unique_ptr<Kernels> make_checked(std::unique_ptr<Kernels> inner, DeviceId device);

}  // namespace farspan
