// Sums and maxima over warps and blocks, in an order that the shape of the block alone decides.
#pragma once

#include <cuda_runtime.h>

namespace farspan::cuda {

inline constexpr unsigned kAllLanes = 0xffffffffu;
inline constexpr int kWarp = 32;

// The sum over a warp, the same bits in every lane.
template <typename T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kAllLanes, x, offset);
  return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, offset));
  return x;
}

// The sum over a block of one dimension, in every thread. slots: shared memory for one number per
// warp, which the block does not write again before its next barrier but one.
template <typename T>
__device__ __forceinline__ T block_sum(T x, T* slots) {
  x = warp_sum(x);
  if (threadIdx.x % kWarp == 0) slots[threadIdx.x / kWarp] = x;
  __syncthreads();
  T total = slots[0];
  for (unsigned w = 1; w < blockDim.x / kWarp; ++w) total += slots[w];
  return total;
}

// As block_sum; NaN is passed over.
__device__ __forceinline__ float block_max(float x, float* slots) {
  x = warp_max(x);
  if (threadIdx.x % kWarp == 0) slots[threadIdx.x / kWarp] = x;
  __syncthreads();
  float top = slots[0];
  for (unsigned w = 1; w < blockDim.x / kWarp; ++w) top = fmaxf(top, slots[w]);
  return top;
}

}  // namespace farspan::cuda
