// One factory per kind of device. backend.cpp chooses among them; CMake chooses, for each kind that
// can be absent, between the file that builds it and the one that explains its absence.
#pragma once

#include <memory>

#include "kernels/backend.h"

namespace farspan {

std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options);
std::unique_ptr<Backend> make_dry_backend(const BackendOptions& options);

// kernels/cuda/factory.cpp, or cuda_absent.cpp where the build has no CUDA: then the first is
// false, the second 0, and the third throws Error(kUsage).
bool cuda_is_built();
int num_cuda_devices();
std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options);
// Libraries, driver and devices (kernels/cuda/cuda_facts.cpp); empty without CUDA.
std::vector<DeviceFact> cuda_facts();

}  // namespace farspan
