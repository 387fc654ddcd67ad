// The CUDA backend's door. Until CudaKernels has every operation of kernels/kernels.h there is no
// backend that could be handed out: the factory refuses and says what is missing.
#include <type_traits>

#include "core/error.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/factories.h"

namespace farspan {
namespace {

std::string names_where(bool written) {
  std::string names;
  for (const cuda::OperationState& state : cuda::operation_states())
    if (state.written == written)
      names += fmt::format("{}{}", names.empty() ? "" : ", ", state.name);
  return names;
}

}  // namespace

bool cuda_is_built() { return true; }

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions&) {
  static_assert(
      std::is_abstract_v<cuda::CudaKernels>,
      "every operation is written: make the backend here, as kernels/cpu/factory.cpp does");
  const cuda::DeviceCount found = cuda::count_devices();
  throw Error(
      ExitCode::kUsage,
      {.what = fmt::format(
           "the CUDA backend of this version cannot train: it lacks {} (it has {}){}",
           names_where(false), names_where(true),
           found.devices > 0 ? "" : fmt::format("; nor is a GPU visible here: {}", found.reason)),
       .where = "device: cuda",
       .fix = "set device: cpu"});
}

}  // namespace farspan
