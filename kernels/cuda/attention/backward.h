// Attention's backward pass on CUDA: kernels/args.h, AttentionBackwardArgs. Which kernel does a
// call is decided here.
//
//   ScheduleCache schedules(device);                      // kept by the backend
//   attention_backward(args, schedules, stream);
//
//   backward_tensor_cores.h   bf16 on mma.sync, head dims that are multiples of 8 up to 256, ALiBi
//   any_shape.h               everything: f32, any head dim, xPos; one multiply-add at a time
#pragma once

#include "core/device.h"
#include "kernels/args.h"
#include "kernels/cuda/attention/schedule_cache.h"

namespace farspan::cuda {

// As kernels/args.h says, on `stream`. No workspace beyond the schedules; no waiting.
void attention_backward(const AttentionBackwardArgs& args, ScheduleCache& schedules,
                        Stream& stream);

}  // namespace farspan::cuda
