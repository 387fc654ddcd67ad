// Types and launch shapes shared by the CUDA kernels.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <bit>
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
inline constexpr std::int64_t kMostBlocks = 132 * 16;  // enough waves on the largest parts

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Blocks of a grid-stride loop over n elements.
inline unsigned grid_of(std::int64_t n) {
  return static_cast<unsigned>(std::clamp<std::int64_t>(ceil_div(n, kBlock), 1, kMostBlocks));
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

// The shape of a loop over rows of `cols` items: x runs over columns, y over rows, so that no index
// is ever divided.
//   for (std::int64_t row = first_row(); row < rows; row += row_stride())
//     for (std::int64_t col = first_col(); col < cols; col += col_stride()) ...
inline LaunchShape by_rows(std::int64_t rows, std::int64_t cols, cudaStream_t stream) {
  const auto x = static_cast<unsigned>(
      std::bit_ceil(static_cast<std::uint64_t>(std::clamp<std::int64_t>(cols, 1, kBlock))));
  const unsigned y = kBlock / x;
  const std::int64_t over_rows = std::clamp<std::int64_t>(ceil_div(rows, y), 1, kMostBlocks);
  const std::int64_t over_cols = std::clamp<std::int64_t>(
      kMostBlocks / over_rows, 1, std::max<std::int64_t>(1, ceil_div(cols, x)));
  return {.grid = dim3(static_cast<unsigned>(over_rows), static_cast<unsigned>(over_cols)),
          .block = dim3(x, y),
          .stream = stream};
}

__device__ __forceinline__ std::int64_t first_row() {
  return static_cast<std::int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
}
__device__ __forceinline__ std::int64_t row_stride() {
  return static_cast<std::int64_t>(gridDim.x) * blockDim.y;
}
__device__ __forceinline__ std::int64_t first_col() {
  return static_cast<std::int64_t>(blockIdx.y) * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ std::int64_t col_stride() {
  return static_cast<std::int64_t>(gridDim.y) * blockDim.x;
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

// Calls body.operator()<flag>().
template <typename Body>
void with_flag(bool flag, Body&& body) {
  if (flag)
    body.template operator()<true>();
  else
    body.template operator()<false>();
}

}  // namespace farspan::cuda
