// What the host side of the tensor-core backward kernels hands to their translation units, one for
// each head dim and part.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/attention/schedule_cache.h"

namespace farspan::cuda {

// What a kernel sums: dq, its blocks holding queries; dk and dv, its blocks holding keys; or, with
// atomic additions to dq, all three.
enum class BackwardPart : std::uint8_t { kQueries, kKeys, kAll };

// Rows that a block holds, and rows of a tile that moves past it.
constexpr int backward_own_rows(int padded_dim) { return padded_dim == 256 ? 64 : 128; }
constexpr int backward_moving_rows(int padded_dim) { return padded_dim == 64 ? 32 : 64; }

// Legend as in kernels/args.h. Device pointers.
struct BackwardCall {
  const __nv_bfloat16 *q, *k, *v, *dout;  // (Tq, Hq, D), (Tk, Hkv, D)
  const float *lse, *delta;               // (Hq, Tq)
  float *dq, *dk, *dv;                    // accumulated
  const float* slopes;                    // (Hq), or null
  std::int64_t position_stride;
  std::int32_t num_q, num_k, num_q_heads, num_kv_heads, head_dim;
  float scale;
  bool by_slice;  // each slice's sums are added to the gradients by themselves, in slice order
};

// kDim: 64, 96, 128 or 256, not less than the head dim. Throws Error when CUDA refuses.
template <int kDim, BackwardPart kPart>
void launch_backward(const BackwardCall& call, const DeviceSchedule& schedule, cudaStream_t stream);

}  // namespace farspan::cuda
