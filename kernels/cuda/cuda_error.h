// Checks of CUDA's return codes, as Farspan errors with what and where.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

namespace farspan::cuda {

// Throws Error: kExhausted when memory ran out, kUsage for what the machine lacks (no device,
// driver too old, a GPU older than this build's code), else kInternal (a bad launch is our bug),
// naming the call. Leaves no error behind in the runtime, unless CUDA's context itself is lost.
void check(cudaError_t status, const char* call, const char* file, int line);
void check(cublasStatus_t status, const char* call, const char* file, int line);

}  // namespace farspan::cuda

#define FARSPAN_CUDA(call) ::farspan::cuda::check((call), #call, __FILE__, __LINE__)
