// Flash attention forward on tensor cores (mma.sync, sm_80 and later); README.md of this folder.
#pragma once

#include "core/device.h"
#include "kernels/args.h"
#include "kernels/cuda/attention/schedule_cache.h"

namespace farspan::cuda {

// bf16 q, k, v and out at multiples of 16 bytes, a head dim that is a multiple of 8 and at most
// 256, no decay (xPos).
bool tensor_cores_do_forward(const AttentionForwardArgs& args);

// attention_forward for calls of which tensor_cores_do_forward is true (CHECKed).
void attention_forward_tensor_cores(const AttentionForwardArgs& args, ScheduleCache& schedules,
                                    Stream& stream);

}  // namespace farspan::cuda
