#include "kernels/cuda/attention/backward.h"

#include "core/error.h"
#include "kernels/cuda/attention/any_shape.h"
#include "kernels/cuda/attention/backward_call.h"
#include "kernels/cuda/attention/backward_tensor_cores.h"
#include "kernels/cuda/cuda_device.h"

namespace farspan::cuda {
namespace {

bool is_aligned(const Tensor& t) { return reinterpret_cast<std::uintptr_t>(t.data) % 16 == 0; }

// Null where the tensor is undefined.
template <typename T>
T* data(const Tensor& t) {
  return reinterpret_cast<T*>(t.data);
}

BackwardCall call_of(const AttentionBackwardArgs& args) {
  using BF16 = __nv_bfloat16;
  return {.q = data<const BF16>(args.q),
          .k = data<const BF16>(args.k),
          .v = data<const BF16>(args.v),
          .dout = data<const BF16>(args.dout),
          .lse = data<const float>(args.lse),
          .delta = data<const float>(args.delta),
          .dq = data<float>(args.dq),
          .dk = data<float>(args.dk),
          .dv = data<float>(args.dv),
          .slopes = data<const float>(args.bias.slopes),
          .position_stride = args.bias.any() ? args.bias.position_stride : 1,
          .num_q = static_cast<std::int32_t>(args.q.shape[0]),
          .num_k = static_cast<std::int32_t>(args.k.shape[0]),
          .num_q_heads = static_cast<std::int32_t>(args.q.shape[1]),
          .num_kv_heads = static_cast<std::int32_t>(args.k.shape[1]),
          .head_dim = static_cast<std::int32_t>(args.q.shape[2]),
          .scale = args.scale,
          .by_slice = args.invariant};
}

template <int kDim>
void run(const AttentionBackwardArgs& args, ScheduleCache& schedules, Stream& stream) {
  const BackwardCall call = call_of(args);
  // A list is good until the next get() on its stream.
  const auto schedule = [&](Stationary stationary) {
    return schedules.get(args.slices,
                         {.stationary = stationary,
                          .num_q = call.num_q,
                          .num_k = call.num_k,
                          .num_kv_heads = call.num_kv_heads,
                          .tile = backward_own_rows(kDim),
                          .moving_tile = backward_moving_rows(kDim)},
                         stream);
  };
  if (!args.deterministic && !args.invariant) {
    launch_backward<kDim, BackwardPart::kAll>(call, schedule(Stationary::kKeys), native(stream));
    return;
  }
  launch_backward<kDim, BackwardPart::kKeys>(call, schedule(Stationary::kKeys), native(stream));
  launch_backward<kDim, BackwardPart::kQueries>(call, schedule(Stationary::kQueries),
                                                native(stream));
}

}  // namespace

bool tensor_cores_do_backward(const AttentionBackwardArgs& args) {
  const std::int64_t head_dim = args.q.shape[2];
  if (args.q.dtype != DType::kBF16 || head_dim % 8 != 0 || head_dim > 256) return false;
  if (args.bias.decay.defined()) return false;
  for (const Tensor* t : {&args.q, &args.k, &args.v, &args.dout, &args.dq, &args.dk, &args.dv})
    if (!is_aligned(*t)) return false;
  return true;
}

void attention_backward_tensor_cores(const AttentionBackwardArgs& args, ScheduleCache& schedules,
                                     Stream& stream) {
  FARSPAN_CHECK(tensor_cores_do_backward(args), "tensor-core backward of {}", args.q.to_string());
  const std::int64_t head_dim = args.q.shape[2];
  if (head_dim <= 64)
    run<64>(args, schedules, stream);
  else if (head_dim <= 96)
    run<96>(args, schedules, stream);
  else if (head_dim <= 128)
    run<128>(args, schedules, stream);
  else
    run<256>(args, schedules, stream);
}

void attention_backward(const AttentionBackwardArgs& args, ScheduleCache& schedules,
                        Stream& stream) {
  if (args.q.numel() == 0 || args.k.numel() == 0 || args.slices.empty()) return;
  if (tensor_cores_do_backward(args))
    attention_backward_tensor_cores(args, schedules, stream);
  else
    attention_backward_any_shape(args, schedules, stream);
}

}  // namespace farspan::cuda
