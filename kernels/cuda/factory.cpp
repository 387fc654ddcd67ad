// The CUDA backend's door. Until every operation of kernels/kernels.h exists on CUDA there is no
// class that could be handed out: the factory refuses and says what is missing.
#include <cuda_runtime.h>

#include "kernels/factories.h"

namespace farspan {
namespace {

constexpr const char* kWritten =
    "copy, fill, add, matmul, swiglu_forward, swiglu_backward, rope_table, rope_apply, adamw";
constexpr const char* kMissing =
    "rmsnorm_forward, rmsnorm_backward, embedding_forward, embedding_backward, cross_entropy, "
    "squared_norm, clip, attention_forward, attention_delta, attention_backward";

}  // namespace

bool cuda_is_built() { return true; }

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0)
    throw Error(ExitCode::kUsage, {.what = "no CUDA device is visible to this process",
                                   .where = "device: cuda",
                                   .fix = "check the driver with nvidia-smi and "
                                          "CUDA_VISIBLE_DEVICES, or set device: cpu"});
  FARSPAN_CHECK(options.device_index >= 0);
  throw Error(ExitCode::kUsage,
              {.what = fmt::format("the CUDA backend cannot train yet: it has {}; it lacks {}",
                                   kWritten, kMissing),
               .where = "device: cuda",
               .fix = "set device: cpu"});
}

}  // namespace farspan
