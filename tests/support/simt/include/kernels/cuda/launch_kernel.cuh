// Stands in for kernels/cuda/launch_kernel.cuh (tests/support/simt): same contract, the kernel runs
// on the emulated device.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <memory>
#include <tuple>
#include <type_traits>

#include "kernels/cuda/cuda_error.h"

namespace farspan::cuda {

struct LaunchShape {
  dim3 grid{1};
  dim3 block{1};
  std::size_t shared_bytes = 0;
  cudaStream_t stream = nullptr;
};

template <typename T>
T* shared_memory() {
  return reinterpret_cast<T*>(simt::running_block.shared);
}

template <typename... Params>
void launch(void (*kernel)(Params...), const LaunchShape& shape,
            std::type_identity_t<Params>... args) {
  static_assert((std::is_trivially_copyable_v<Params> && ...), "an argument that CUDA cannot pass");
  static_assert((sizeof(Params) + ... + std::size_t{0}) <= 4096, "more arguments than CUDA passes");
  struct Call {
    void (*kernel)(Params...);
    std::tuple<Params...> args;
  };
  const auto call = std::make_shared<Call>(Call{kernel, {args...}});
  FARSPAN_CUDA(simt::launch({.kernel = reinterpret_cast<const void*>(kernel),
                             .grid = shape.grid,
                             .block = shape.block,
                             .shared_bytes = shape.shared_bytes,
                             .invoke =
                                 [](const void* c) {
                                   std::apply(static_cast<const Call*>(c)->kernel,
                                              static_cast<const Call*>(c)->args);
                                 },
                             .args = call.get()},
                            call, shape.stream));
}

}  // namespace farspan::cuda
