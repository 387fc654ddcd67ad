#include "kernels/cuda/attention/forward_tensor_cores.h"

#include <limits>

#include "core/error.h"
#include "kernels/cuda/attention/forward_call.h"
#include "kernels/cuda/cuda_device.h"

namespace farspan::cuda {
namespace {

constexpr std::int64_t kMostDim = 256;

bool at_multiple_of(const Tensor& t, std::uintptr_t bytes) {
  return reinterpret_cast<std::uintptr_t>(t.data) % bytes == 0;
}

int padded(std::int64_t head_dim) {
  for (const int dim : {32, 64, 96, 128})
    if (head_dim <= dim) return dim;
  return kMostDim;
}

ForwardCall call_of(const AttentionForwardArgs& args) {
  constexpr double kLog2E = 1.4426950408889634;
  const auto bf16_of = [](const Tensor& t) { return reinterpret_cast<__nv_bfloat16*>(t.data); };
  const auto f32_of = [](const Tensor& t) { return reinterpret_cast<float*>(t.data); };
  return {.q = bf16_of(args.q),
          .k = bf16_of(args.k),
          .v = bf16_of(args.v),
          .acc = f32_of(args.acc),
          .row_max = f32_of(args.row_max),
          .row_sum = f32_of(args.row_sum),
          .out = bf16_of(args.out),
          .lse = f32_of(args.lse),
          .slopes = f32_of(args.bias.slopes),
          .position_stride = args.bias.position_stride,
          .num_q = static_cast<std::int32_t>(args.q.shape[0]),
          .num_q_heads = static_cast<std::int32_t>(args.q.shape[1]),
          .num_kv_heads = static_cast<std::int32_t>(args.k.shape[1]),
          .head_dim = static_cast<std::int32_t>(args.q.shape[2]),
          .scale_log2 = static_cast<float>(static_cast<double>(args.scale) * kLog2E),
          .first = args.first,
          .last = args.last};
}

}  // namespace

bool tensor_cores_do_forward(const AttentionForwardArgs& args) {
  const std::int64_t head_dim = args.q.shape[2];
  const bool inputs = at_multiple_of(args.q, 16) && at_multiple_of(args.k, 16) &&
                      at_multiple_of(args.v, 16) && at_multiple_of(args.acc, 8);
  return args.q.dtype == DType::kBF16 && head_dim % 8 == 0 && head_dim <= kMostDim && inputs &&
         (!args.last || at_multiple_of(args.out, 16)) && !args.bias.decay.defined();
}

void attention_forward_tensor_cores(const AttentionForwardArgs& args, ScheduleCache& schedules,
                                    Stream& stream) {
  FARSPAN_CHECK(tensor_cores_do_forward(args), "q {}", args.q.to_string());
  FARSPAN_CHECK(args.scale > 0, "attention with scale {}", args.scale);
  const std::int64_t num_q = args.q.shape[0], num_heads = args.q.shape[1];
  if (args.q.numel() == 0) return;
  // A tile's rows are indexed in 32 bits, and its blocks are one dimension of the grid.
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  FARSPAN_CHECK(num_heads * args.q.shape[2] <= kMost / kForwardRows &&
                    (num_q / kForwardRows + 1) * num_heads <= kMost,
                "attention of {} is too large for one call", args.q.to_string());
  const int dim = padded(args.q.shape[2]);
  const DeviceSchedule schedule = schedules.get(args.slices,
                                                {.stationary = Stationary::kQueries,
                                                 .num_q = num_q,
                                                 .num_k = args.k.shape[0],
                                                 .num_kv_heads = args.k.shape[1],
                                                 .tile = kForwardRows,
                                                 .moving_tile = forward_keys(dim)},
                                                stream);
  const ForwardCall call = call_of(args);
  const auto launch = dim == 32    ? launch_forward<32>
                      : dim == 64  ? launch_forward<64>
                      : dim == 96  ? launch_forward<96>
                      : dim == 128 ? launch_forward<128>
                                   : launch_forward<kMostDim>;
  launch(call, schedule, native(stream));
}

}  // namespace farspan::cuda
