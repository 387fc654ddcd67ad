// Starting kernels, and the shared memory they are started with: the only place of <<<>>>. The
// other version of this file, for g++, is in tests/support/simt.
//
//   __global__ void twice_kernel(float* x, int n) { float* tile = shared_memory<float>(); ... }
//   launch(twice_kernel, {.grid = 80, .block = 256, .shared_bytes = 4096, .stream = s}, x, n);
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <type_traits>

#include "kernels/cuda/cuda_error.h"

namespace farspan::cuda {

struct LaunchShape {
  dim3 grid{1};
  dim3 block{1};
  std::size_t shared_bytes = 0;  // what shared_memory() is given; up to 227 KiB on Hopper
  cudaStream_t stream = nullptr;
};

// The block's dynamic shared memory, at a multiple of 1024 bytes where the kernel has no static
// shared memory (else of 16). Not initialised.
template <typename T>
__device__ __forceinline__ T* shared_memory() {
  extern __shared__ __align__(1024) unsigned char dynamic_shared_memory[];
  return reinterpret_cast<T*>(dynamic_shared_memory);
}

// Enqueues kernel(args...), converted to the kernel's parameter types. Throws Error when CUDA
// refuses.
template <typename... Params>
void launch(void (*kernel)(Params...), const LaunchShape& shape,
            std::type_identity_t<Params>... args) {
  // 48 KiB come without asking, of which static shared memory takes its part.
  constexpr std::size_t kWithoutAsking = 32 << 10;
  if (shape.shared_bytes > kWithoutAsking)
    FARSPAN_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(shape.shared_bytes)));
  kernel<<<shape.grid, shape.block, shape.shared_bytes, shape.stream>>>(args...);
  FARSPAN_CUDA(cudaGetLastError());
}

}  // namespace farspan::cuda
