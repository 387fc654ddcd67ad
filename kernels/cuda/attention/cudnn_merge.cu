#include "core/error.h"
#include "kernels/cuda/attention/cudnn_merge.h"
#include "kernels/cuda/launch.cuh"

namespace farspan::cuda {
namespace {

struct MergeArgs {
  const bf16* out;   // (batch, q_len, heads, dim)
  const float* lse;  // (batch, heads, q_len)
  float* acc;        // (tokens, heads, dim)
  float* row_max;    // (heads, tokens)
  float* row_sum;
  std::int64_t batch, q_len, q_begin, q_step, heads, dim, tokens;
};

// A warp takes a row of one head.
__global__ void __launch_bounds__(kBlock) merge_kernel(MergeArgs a) {
  constexpr float kLog2E = 1.4426950408889634f;
  const unsigned lane = threadIdx.x % 32;
  const std::int64_t items = a.batch * a.q_len * a.heads;
  const std::int64_t step = stride() / 32;
  for (std::int64_t item = first_index() / 32; item < items; item += step) {
    const std::int64_t head = item % a.heads, row = item / a.heads;
    const std::int64_t sequence = row / a.q_len, at = row % a.q_len;
    const std::int64_t token = a.q_begin + sequence * a.q_step + at;
    const float fresh_max = a.lse[(sequence * a.heads + head) * a.q_len + at] * kLog2E;
    const std::int64_t state = head * a.tokens + token;
    const float old_max = a.row_max[state], old_sum = a.row_sum[state];
    __syncwarp();  // all lanes have read the state before one writes it
    if (fresh_max == -INFINITY) continue;
    const float new_max = fmaxf(old_max, fresh_max);
    const float keep = old_max == -INFINITY ? 0.0f : exp2f(old_max - new_max);
    const float take = exp2f(fresh_max - new_max);
    const bf16* from = a.out + item * a.dim;
    float* to = a.acc + (token * a.heads + head) * a.dim;
    // Two dims at a time: a head's are a multiple of 8.
    for (std::int64_t d = 2 * lane; d < a.dim; d += 64) {
      const float2 old = *reinterpret_cast<const float2*>(to + d);
      const float first = to_float(from[d]), second = to_float(from[d + 1]);
      *reinterpret_cast<float2*>(to + d) =
          make_float2(old.x * keep + first * take, old.y * keep + second * take);
    }
    if (lane == 0) {
      a.row_max[state] = new_max;
      a.row_sum[state] = old_sum * keep + take;
    }
  }
}

}  // namespace

void merge_partial(const Tensor& partial_out, const Tensor& partial_lse, const PartialRows& rows,
                   const AttentionForwardArgs& state, cudaStream_t stream) {
  const MergeArgs args{.out = data<const bf16>(partial_out),
                       .lse = data<const float>(partial_lse),
                       .acc = data<float>(state.acc),
                       .row_max = data<float>(state.row_max),
                       .row_sum = data<float>(state.row_sum),
                       .batch = rows.batch,
                       .q_len = rows.q_len,
                       .q_begin = rows.q_begin,
                       .q_step = rows.q_step,
                       .heads = state.q.shape[1],
                       .dim = state.q.shape[2],
                       .tokens = state.q.shape[0]};
  FARSPAN_CHECK(args.dim % 2 == 0, "a head dim of {} is odd", args.dim);
  const std::int64_t items = rows.batch * rows.q_len * args.heads;
  if (items == 0) return;
  launch(merge_kernel, linear(items * 32, stream), args);
}

}  // namespace farspan::cuda
