// For tests of the emulator: device memory with values, and launches on a stream of their own.
//
//   Bench bench(seed);
//   int* x = bench.put(std::vector<int>{1, 2, 3});
//   cuda::launch(kernel, bench.shape(1, 32), x);
//   std::vector<int> y = bench.get(x, 3);          // or throws what the kernel did wrong
#pragma once

#include <cuda_runtime.h>

#include <string>
#include <vector>

#include "core/error.h"
#include "kernels/cuda/launch_kernel.cuh"
#include "support/simt/runtime.h"

namespace farspan::simt {

class Bench {
 public:
  explicit Bench(std::uint64_t seed = 1) {
    runtime().seed(seed);
    FARSPAN_CUDA(cudaStreamCreate(&stream_));
  }
  ~Bench() {
    for (void* p : memory_) (void)cudaFree(p);
    (void)cudaStreamDestroy(stream_);
  }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  cudaStream_t stream() const { return stream_; }
  cuda::LaunchShape shape(unsigned grid, unsigned block, std::size_t shared_bytes = 0) const {
    return {.grid = grid, .block = block, .shared_bytes = shared_bytes, .stream = stream_};
  }
  template <typename T>
  T* room(std::size_t n) {
    T* p = nullptr;
    FARSPAN_CUDA(cudaMalloc(&p, n * sizeof(T)));
    memory_.push_back(p);
    return p;
  }
  template <typename T>
  T* put(const std::vector<T>& values) {
    T* const p = room<T>(values.size());
    FARSPAN_CUDA(
        cudaMemcpyAsync(p, values.data(), values.size() * sizeof(T), cudaMemcpyDefault, stream_));
    return p;
  }
  template <typename T>
  std::vector<T> get(const T* p, std::size_t n) {
    std::vector<T> values(n);
    FARSPAN_CUDA(cudaMemcpyAsync(values.data(), p, n * sizeof(T), cudaMemcpyDefault, stream_));
    return values;
  }
  // What a launch and its work throw; empty where nothing.
  template <typename... Params>
  std::string failure(void (*kernel)(Params...), const cuda::LaunchShape& shape,
                      std::type_identity_t<Params>... args) {
    try {
      cuda::launch(kernel, shape, args...);
      FARSPAN_CUDA(cudaStreamSynchronize(stream_));
    } catch (const Error& e) {
      return e.text().what;
    }
    return {};
  }

 private:
  cudaStream_t stream_ = nullptr;
  std::vector<void*> memory_;
};

}  // namespace farspan::simt
