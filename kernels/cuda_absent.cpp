#include "core/error.h"
#include "kernels/factories.h"

namespace farspan {

bool cuda_is_built() { return false; }

int num_cuda_devices() { return 0; }

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions&) {
  throw Error(ExitCode::kUsage, {.what = "this build has no CUDA backend",
                                 .where = "device: cuda",
                                 .fix = "build with cmake --preset cuda, or set device: cpu"});
}

std::vector<DeviceFact> cuda_facts() { return {}; }

}  // namespace farspan
