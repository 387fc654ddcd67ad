// Types and launch shapes shared by the CUDA kernels.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "core/tensor.h"
#include "kernels/cuda/cuda_error.h"
#include "kernels/cuda/launch_kernel.cuh"

namespace farspan::cuda {

using bf16 = __nv_bfloat16;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
  return __float2bfloat16_rn(x);
}

inline constexpr int kBlock = 256;

// Blocks of a grid-stride loop over n elements.
inline unsigned grid_of(std::int64_t n) {
  constexpr std::int64_t kMostBlocks = 132 * 16;  // enough waves on the largest parts
  return static_cast<unsigned>(std::clamp<std::int64_t>((n + kBlock - 1) / kBlock, 1, kMostBlocks));
}

// The shape of a grid-stride loop over n elements.
inline LaunchShape linear(std::int64_t n, cudaStream_t stream) {
  return {.grid = grid_of(n), .block = kBlock, .stream = stream};
}

__device__ __forceinline__ std::int64_t first_index() {
  return static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ std::int64_t stride() {
  return static_cast<std::int64_t>(gridDim.x) * blockDim.x;
}

template <typename T>
T* data(const Tensor& t) {
  return reinterpret_cast<T*>(t.data);
}

// Calls body.operator()<T>() with the tensor's compute type.
template <typename Body>
void with_compute_type(DType dtype, Body&& body) {
  if (dtype == DType::kF32)
    body.template operator()<float>();
  else if (dtype == DType::kBF16)
    body.template operator()<bf16>();
  else
    FARSPAN_CHECK(false, "{} is not a compute dtype", name_of(dtype));
}

}  // namespace farspan::cuda
