// What the host side of the tensor-core forward kernel hands to its translation units, one for each
// head dim.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/attention/schedule_cache.h"

namespace farspan::cuda {

// Rows of queries that a block holds, whatever the head dim.
inline constexpr int kForwardRows = 128;

// Keys of a tile. Larger ones cost registers, and waste more at the borders of masks.
constexpr int forward_keys(int padded_dim) { return padded_dim == 64 ? 128 : 64; }

// Legend as in kernels/args.h. Device pointers.
struct ForwardCall {
  const __nv_bfloat16 *q, *k, *v;  // (Tq, Hq, D), (Tk, Hkv, D)
  float *acc, *row_max, *row_sum;  // state; not read with first && last
  __nv_bfloat16* out;              // with last
  float* lse;                      // with last
  const float* slopes;             // (Hq), or null
  std::int64_t position_stride;
  std::int32_t num_q, num_q_heads, num_kv_heads, head_dim;
  float scale_log2;  // scale * log2(e)
  bool first, last;
};

// kDim: 32, 64, 96, 128 or 256, not less than the head dim.
template <int kDim>
void launch_forward(const ForwardCall& call, const DeviceSchedule& schedule, cudaStream_t stream);

}  // namespace farspan::cuda
