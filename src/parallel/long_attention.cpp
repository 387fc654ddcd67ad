#include "parallel/long_attention.h"

#include <algorithm>
#include <utility>

#include "parallel/attention_parts.h"

namespace farspan {
namespace {

KvCache::Sizes with_capacity(KvCache::Sizes sizes, std::int64_t capacity) {
  sizes.capacity = capacity;
  return sizes;
}

std::int64_t num_sinks(const LongAttentionOptions& options) {
  return options.kind == LongAttentionKind::kLmInfinite ? options.global : 0;
}

// f(index) of each token of a piece.
template <typename F>
std::vector<std::int32_t> positions_of(const TokenPiece& tokens, F f) {
  std::vector<std::int32_t> out;
  for (std::int64_t i = tokens.first; i < tokens.first + tokens.count; ++i)
    out.push_back(static_cast<std::int32_t>(f(i)));
  return out;
}

void append(std::vector<AttentionSlice>& slices, const std::vector<AttentionSlice>& more) {
  slices.insert(slices.end(), more.begin(), more.end());
}

}  // namespace

LongAttention::LongAttention(const LongAttentionOptions& options, const KvCache::Sizes& sizes,
                             const Rotary& rotary, Arena& arena)
    : options_(options),
      rotary_(rotary),
      cache_(arena, sizes),
      sinks_(arena, with_capacity(sizes, num_sinks(options))) {
  FARSPAN_CHECK(options.kind != LongAttentionKind::kNone && options.context >= 2 &&
                    options.chunk_tokens() < options.context && options.global >= 0 &&
                    rotary.inv_freq.defined(),
                "context {}, chunk {}", options.context, options.chunk_tokens());
}

LongAttention::Part LongAttention::part(const std::vector<std::int32_t>& positions,
                                        const StepContext& ctx) const {
  const auto n = static_cast<std::int64_t>(positions.size());
  const Shape shape{n, rotary_.inv_freq.shape[0]};
  const Tensor ids = ctx.scratch.take(DType::kI32, {n}, "attention.positions");
  Part part{.cos = ctx.scratch.take(DType::kF32, shape, "attention.cos"),
            .sin = ctx.scratch.take(DType::kF32, shape, "attention.sin"),
            .slices = {}};
  ctx.backend.device().copy(ids.data, reinterpret_cast<const std::byte*>(positions.data()),
                            ids.bytes(), ctx.stream());
  ctx.stream().synchronize();
  ctx.kernels().rope_table({.positions = ids,
                            .inv_freq = rotary_.inv_freq,
                            .cos = part.cos,
                            .sin = part.sin,
                            .attention_scale = rotary_.scale},
                           ctx.stream());
  return part;
}

void LongAttention::begin(std::int64_t count, const StepContext& ctx) {
  const TokenPiece queries{.first = tokens_, .count = count, .position = tokens_};
  if (options_.kind == LongAttentionKind::kLmInfinite && cache_.rows() + count > cache_.capacity())
    cache_.keep_last(options_.context - 1, ctx);
  cache_.extend({queries});
  tokens_ += count;
  new_sinks_ = 0;
  parts_.clear();
  if (options_.kind == LongAttentionKind::kLmInfinite)
    begin_lm_infinite(queries, ctx);
  else
    begin_dual_chunk(queries, ctx);
  std::erase_if(parts_, [](const Part& p) { return p.slices.empty(); });
}

void LongAttention::begin_lm_infinite(const TokenPiece& queries, const StepContext& ctx) {
  const std::int64_t limit = options_.context;
  new_sinks_ = std::clamp<std::int64_t>(options_.global - queries.first, 0, queries.count);
  if (new_sinks_ > 0) {
    sinks_.extend({{.first = queries.first, .count = new_sinks_, .position = queries.first}});
    sink_keys_ = part(std::vector<std::int32_t>(static_cast<std::size_t>(new_sinks_), 0), ctx);
  }
  keys_ = part(positions_of(queries, [](std::int64_t i) { return i; }), ctx);
  const IndexRange all{0, queries.first + queries.count};
  double pairs = 0;
  parts_ = {keys_, part(positions_of(queries, [&](std::int64_t) { return limit; }), ctx)};
  Part& near = parts_[0];
  near.slices = slices_of_tile({.q = all, .k = all, .max_distance = limit - 1}, {&queries, 1},
                               cache_.pieces(), 1, pairs);
  Part& far = parts_[1];
  far.sinks = true;
  far.slices = slices_of_tile({.q = all, .k = all, .min_distance = limit}, {&queries, 1},
                              sinks_.pieces(), 1, pairs);
}

void LongAttention::begin_dual_chunk(const TokenPiece& queries, const StepContext& ctx) {
  const std::int64_t s = options_.chunk_tokens(), farthest = options_.context - 1;
  const std::int64_t end = queries.first + queries.count;
  keys_ = part(positions_of(queries, [&](std::int64_t i) { return i % s; }), ctx);
  parts_ = {
      keys_,
      part(positions_of(queries, [&](std::int64_t i) { return std::min(s + i % s, farthest); }),
           ctx),
      part(positions_of(queries, [&](std::int64_t) { return farthest; }), ctx)};
  double pairs = 0;
  for (std::int64_t c = queries.first / s * s; c < end; c += s) {
    const IndexRange chunk{c, std::min(c + s, end)};
    const auto meet = [&](Part& by, IndexRange keys) {
      if (keys.begin >= keys.end) return;
      append(by.slices,
             slices_of_tile({.q = chunk, .k = keys}, {&queries, 1}, cache_.pieces(), 1, pairs));
    };
    meet(parts_[0], chunk);
    meet(parts_[1], {c - s, c});
    meet(parts_[2], {0, c - s});
  }
}

void LongAttention::forward(const AttentionInputs& in, Tensor out, Tensor lse, const BiasTables&,
                            const StepContext& ctx) const {
  auto scope = ctx.scratch.scope();
  const auto rotate = [&](Tensor x, const Part& by) {
    ctx.kernels().rope_apply({.x = x, .cos = by.cos, .sin = by.sin}, ctx.stream());
  };
  if (new_sinks_ > 0) {
    sinks_.put(ctx.layer, in.k, in.v, {{0, new_sinks_}}, ctx);
    rotate(sinks_.new_k(ctx.layer), sink_keys_);
  }
  rotate(in.k, keys_);
  cache_.put(ctx.layer, in.k, in.v, {{0, in.k.shape[0]}}, ctx);
  const Shape rows{in.q.shape[1], in.q.shape[0]};
  const Tensor acc = ctx.scratch.take(DType::kF32, in.q.shape, "attention.accumulator");
  const Tensor row_max = ctx.scratch.take(DType::kF32, rows, "attention.row_max");
  const Tensor row_sum = ctx.scratch.take(DType::kF32, rows, "attention.row_sum");
  const Tensor room = ctx.scratch.take(in.q.dtype, in.q.shape, "attention.rotated");
  for (std::size_t p = 0; p < parts_.size(); ++p) {
    const Part& part = parts_[p];
    const KvCache& keys = part.sinks ? sinks_ : cache_;
    ctx.kernels().copy({.src = in.q, .dst = room}, ctx.stream());
    rotate(room, part);
    ctx.kernels().attention_forward({.q = room,
                                     .k = keys.k(ctx.layer),
                                     .v = keys.v(ctx.layer),
                                     .acc = acc,
                                     .row_max = row_max,
                                     .row_sum = row_sum,
                                     .slices = part.slices,
                                     .scale = score_scale(in.q),
                                     .first = p == 0,
                                     .last = p + 1 == parts_.size(),
                                     .out = out,
                                     .lse = lse},
                                    ctx.stream());
  }
}

void LongAttention::backward(const AttentionInputs&, Tensor, Tensor, Tensor, const BiasTables&,
                             const AttentionGradients&, const StepContext&) const {
  FARSPAN_CHECK(false, "generation has no backward pass");
}

}  // namespace farspan
