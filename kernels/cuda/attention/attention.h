// Attention on CUDA: kernels/args.h, AttentionForwardArgs. Which kernel does a call is decided
// here.
//
//   ScheduleCache schedules(device);                      // kept by the backend
//   attention_forward(args, schedules, stream);
//
// Two kernels share the work:
//   forward_tensor_cores.h   bf16 on mma.sync, head dims that are multiples of 8 up to 256, ALiBi
//   any_shape.h              everything: f32, any head dim, xPos; one multiply-add at a time
//
// Both keep a row's state between calls in one form, so that hops of one row may differ in kernel:
//   row_max   m log2(e), where m is the largest of scale q.k - slope p so far; -inf: no key yet
//   row_sum   sum of 2^(s log2(e) - row_max), with the very row_max that is stored
//   acc       sum of 2^(s log2(e) - row_max) v
// Nothing outside reads the state.
#pragma once

#include "core/device.h"
#include "kernels/args.h"
#include "kernels/cuda/attention/schedule_cache.h"

namespace farspan::cuda {

// As kernels/args.h says, on `stream`. No workspace beyond the schedules; no waiting.
void attention_forward(const AttentionForwardArgs& args, ScheduleCache& schedules, Stream& stream);

}  // namespace farspan::cuda
