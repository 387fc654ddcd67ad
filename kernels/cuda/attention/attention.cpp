#include "kernels/cuda/attention/attention.h"

#include "kernels/cuda/attention/any_shape.h"
#include "kernels/cuda/attention/forward_tensor_cores.h"

namespace farspan::cuda {

void attention_forward(const AttentionForwardArgs& args, ScheduleCache& schedules, Stream& stream) {
  if (tensor_cores_do_forward(args))
    attention_forward_tensor_cores(args, schedules, stream);
  else
    attention_forward_any_shape(args, schedules, stream);
}

}  // namespace farspan::cuda
