// Flash attention backward on tensor cores (mma.sync, sm_80 and later): backward_kernel.cuh.
#pragma once

#include "core/device.h"
#include "kernels/args.h"
#include "kernels/cuda/attention/schedule_cache.h"

namespace farspan::cuda {

// bf16 q, k, v, dout and f32 gradients at multiples of 16 bytes, a head dim that is a multiple of 8
// and at most 256, no decay (xPos).
bool tensor_cores_do_backward(const AttentionBackwardArgs& args);

// attention_backward for calls of which tensor_cores_do_backward is true (CHECKed). Deterministic
// and invariant calls sum dq in a kernel of its own (7 products of matrices instead of 5); others
// add to dq atomically from the kernel that sums dk and dv.
void attention_backward_tensor_cores(const AttentionBackwardArgs& args, ScheduleCache& schedules,
                                     Stream& stream);

}  // namespace farspan::cuda
