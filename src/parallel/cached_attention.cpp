#include "parallel/cached_attention.h"

#include <cmath>
#include <limits>

#include "parallel/attention_parts.h"

namespace farspan {
namespace {

// Partial results as they lie in a message: out (T, Hq, D), then lse (Hq, T), f32.
struct Partials {
  std::int64_t tokens, heads, head_dim;
  std::int64_t num_out() const { return tokens * heads * head_dim; }
  std::int64_t numel() const { return num_out() + heads * tokens; }
};

// Of one token and head. The weights of ranks that see no key are 0.
void merge_head(const std::vector<float>& all, const Partials& p, std::int64_t token,
                std::int64_t head, float* merged) {
  const auto num_ranks = static_cast<std::int64_t>(all.size()) / p.numel();
  const auto lse = [&](std::int64_t r) {
    return all[static_cast<std::size_t>(r * p.numel() + p.num_out() + head * p.tokens + token)];
  };
  float most = -std::numeric_limits<float>::infinity();
  for (std::int64_t r = 0; r < num_ranks; ++r) most = std::max(most, lse(r));
  const std::int64_t at = (token * p.heads + head) * p.head_dim;
  float* out = merged + at;
  std::fill(out, out + p.head_dim, 0.0f);
  float sum = 0;
  for (std::int64_t r = 0; r < num_ranks; ++r) {
    const float weight = std::isinf(lse(r)) && lse(r) < 0 ? 0.0f : std::exp(lse(r) - most);
    if (weight == 0.0f) continue;
    sum += weight;
    for (std::int64_t d = 0; d < p.head_dim; ++d)
      out[d] += weight * all[static_cast<std::size_t>(r * p.numel() + at + d)];
  }
  for (std::int64_t d = 0; sum > 0 && d < p.head_dim; ++d) out[d] /= sum;
  merged[p.num_out() + head * p.tokens + token] = sum > 0 ? most + std::log(sum) : most;
}

}  // namespace

AttentionInputs RecordingAttention::spread(const AttentionInputs& in, Arena& arena,
                                           const StepContext& ctx) const {
  cache_.put(ctx.layer, in.k, in.v, {{0, in.k.shape[0]}}, ctx);
  return strategy_.spread(in, arena, ctx);
}

void RecordingAttention::backward(const AttentionInputs&, Tensor, Tensor, Tensor, const BiasTables&,
                                  const AttentionGradients&, const StepContext&) const {
  FARSPAN_CHECK(false, "generation has no backward pass");
}

void CachedAttention::forward(const AttentionInputs& in, Tensor out, Tensor lse,
                              const BiasTables& bias, const StepContext& ctx) const {
  cache_.put(ctx.layer, in.k, in.v, kept_, ctx);
  {
    auto scope = ctx.scratch.scope();
    const Shape rows{in.q.shape[1], in.q.shape[0]};
    ctx.kernels().attention_forward(
        {.q = in.q,
         .k = cache_.k(ctx.layer),
         .v = cache_.v(ctx.layer),
         .acc = ctx.scratch.take(DType::kF32, in.q.shape, "attention.accumulator"),
         .row_max = ctx.scratch.take(DType::kF32, rows, "attention.row_max"),
         .row_sum = ctx.scratch.take(DType::kF32, rows, "attention.row_sum"),
         .slices = ctx.plan().hops.front().slices,
         .scale = score_scale(in.q),
         .bias = position_bias(bias, ctx),
         .first = true,
         .last = true,
         .out = out,
         .lse = lse},
        ctx.stream());
  }
  if (ranks_ != nullptr) merge_over_ranks(out, lse, *ranks_, ctx);
}

void CachedAttention::backward(const AttentionInputs&, Tensor, Tensor, Tensor, const BiasTables&,
                               const AttentionGradients&, const StepContext&) const {
  FARSPAN_CHECK(false, "generation has no backward pass");
}

void merge_over_ranks(Tensor out, Tensor lse, Communicator& ranks, const StepContext& ctx) {
  auto scope = ctx.scratch.scope();
  const Partials p{.tokens = out.shape[0], .heads = out.shape[1], .head_dim = out.shape[2]};
  const std::int64_t size = ranks.size(), n = p.numel();
  const Tensor mine = ctx.scratch.take(DType::kF32, {n}, "attention.partial");
  const Tensor all = ctx.scratch.take(DType::kF32, {size * n}, "attention.partials");
  const Tensor mine_out = mine.rows(0, p.num_out()).view(out.shape);
  const Tensor mine_lse = mine.rows(p.num_out(), n - p.num_out()).view(lse.shape);
  ctx.kernels().copy({.src = out, .dst = mine_out}, ctx.stream());
  ctx.kernels().copy({.src = lse, .dst = mine_lse}, ctx.stream());
  Pending pending = ranks.all_gather(mine, all, ctx.stream());
  wait_exposed(ctx, pending);

  std::vector<float> host(static_cast<std::size_t>(size * n));
  std::vector<float> merged(static_cast<std::size_t>(n));
  Device& device = ctx.backend.device();
  device.copy(reinterpret_cast<std::byte*>(host.data()), all.data, all.bytes(), ctx.stream());
  ctx.stream().synchronize();
  for (std::int64_t token = 0; token < p.tokens; ++token)
    for (std::int64_t head = 0; head < p.heads; ++head)
      merge_head(host, p, token, head, merged.data());
  device.copy(mine.data, reinterpret_cast<const std::byte*>(merged.data()), mine.bytes(),
              ctx.stream());
  ctx.kernels().copy({.src = mine_out, .dst = out}, ctx.stream());
  ctx.kernels().copy({.src = mine_lse, .dst = lse}, ctx.stream());
  ctx.stream().synchronize();  // `merged` goes
}

}  // namespace farspan
