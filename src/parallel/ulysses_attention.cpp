#include "parallel/ulysses_attention.h"

#include <initializer_list>
#include <utility>
#include <vector>

#include "parallel/attention_parts.h"
#include "parallel/ring_attention.h"

namespace farspan {
namespace {

// Who has which heads and tokens in this rank's Ulysses group.
struct Group {
  // Of a model with these heads, over the merged rows of ctx.plan().
  Group(std::int64_t num_heads, std::int64_t num_kv_heads, const StepContext& ctx)
      : rank(ctx.mesh.ulysses().rank()), rows(ctx.plan().local_rows) {
    const int size = ctx.mesh.ulysses().size();
    for (int u = 0; u < size; ++u) {
      heads.push_back(ulysses_heads(num_heads, num_kv_heads, u, size));
      tokens.push_back(ulysses_share(rows, u, size));
    }
  }

  int size() const { return static_cast<int>(heads.size()); }
  const HeadShare& mine() const { return heads[static_cast<std::size_t>(rank)]; }
  std::int64_t my_tokens() const { return tokens[static_cast<std::size_t>(rank)].size(); }
  // The part of a tensor of merged rows that belongs to rank u's tokens.
  Tensor part(Tensor merged, std::size_t u) const {
    return merged.rows(tokens[u].begin, tokens[u].size());
  }

  int rank;
  std::int64_t rows;  // of all tokens of the place
  std::vector<HeadShare> heads;
  std::vector<IndexRange> tokens;
};

// One message made of several tensors, f32 before bf16 so that each is aligned.
struct Parcel {
  struct Item {
    DType dtype;
    Shape shape;
  };

  static Parcel take(Arena& arena, std::initializer_list<Item> items, std::string_view name) {
    std::int64_t bytes = 0;
    for (const Item& item : items)
      bytes += item.shape.numel() * static_cast<std::int64_t>(size_of(item.dtype));
    Parcel parcel{.buffer = arena.take(DType::kU8, {bytes}, name), .items = {}};
    std::byte* data = parcel.buffer.data;
    for (const Item& item : items) {
      parcel.items.push_back({data, item.dtype, item.shape, parcel.buffer.device});
      data += parcel.items.back().bytes();
    }
    return parcel;
  }

  Tensor buffer;
  std::vector<Tensor> items;
};

// One parcel for every rank of the group and one from every rank; the one to this rank itself is
// the one it gets.
class ParcelExchange {
 public:
  ParcelExchange(const Group& group, const StepContext& ctx) : group_(group), ctx_(ctx) {}

  // What rank u is sent and what it sends. For every u, in order, before start().
  void add(std::initializer_list<Parcel::Item> to, std::initializer_list<Parcel::Item> from,
           std::string_view name) {
    const bool own = static_cast<int>(to_.size()) == group_.rank;
    to_.push_back(Parcel::take(ctx_.scratch, to, name));
    from_.push_back(own ? to_.back() : Parcel::take(ctx_.scratch, from, name));
  }

  // `pack(u, items)` fills the parcel to rank u, `unpack(u, items)` empties the one from rank u; in
  // ascending u. This rank's own is packed while the others travel.
  template <typename Pack, typename Unpack>
  void run(const Pack& pack, const Unpack& unpack) {
    const auto own = static_cast<std::size_t>(group_.rank);
    std::vector<Message> sends, recvs;
    for (std::size_t u = 0; u < to_.size(); ++u) {
      if (u == own) continue;
      pack(u, to_[u].items);
      sends.push_back({static_cast<int>(u), to_[u].buffer});
      recvs.push_back({static_cast<int>(u), from_[u].buffer});
    }
    Pending pending = ctx_.mesh.ulysses().exchange(sends, recvs, ctx_.stream());
    pack(own, to_[own].items);
    wait_exposed(ctx_, pending);
    for (std::size_t u = 0; u < from_.size(); ++u) unpack(u, from_[u].items);
  }

 private:
  const Group& group_;
  const StepContext& ctx_;
  std::vector<Parcel> to_, from_;
};

// Runs of local KV heads whose model heads are consecutive, so that one copy moves each:
// fn(first local head, first distinct head counted from this rank's first, number of heads).
template <typename Fn>
void for_head_runs(const HeadShare& share, const Fn& fn) {
  const std::vector<std::int32_t>& heads = share.kv_heads;
  for (std::size_t first = 0; first < heads.size();) {
    std::size_t end = first + 1;
    while (end < heads.size() && heads[end] == heads[end - 1] + 1) ++end;
    fn(static_cast<std::int64_t>(first), std::int64_t{heads[first]} - heads.front(),
       static_cast<std::int64_t>(end - first));
    first = end;
  }
}

// dst (T, Hkv', D) = this rank's KV heads, copies included, from the distinct ones of src.
void expand_heads(const StepContext& ctx, const HeadShare& share, Tensor src, Tensor dst) {
  for_head_runs(share, [&](std::int64_t local, std::int64_t distinct, std::int64_t count) {
    copy_heads(ctx,
               {.src = src, .dst = dst, .src_head = distinct, .dst_head = local, .count = count});
  });
}

// dst (T, distinct heads, D) = the sum over this rank's copies of each head, src (T, Hkv', D) f32.
void fold_heads(const StepContext& ctx, const HeadShare& share, Tensor src, Tensor dst) {
  if (!share.shared) {
    ctx.kernels().copy({.src = src, .dst = dst}, ctx.stream());
    return;
  }
  ctx.kernels().fill({.dst = dst, .value = 0}, ctx.stream());
  for_head_runs(share, [&](std::int64_t local, std::int64_t distinct, std::int64_t count) {
    copy_heads(ctx, {.src = src,
                     .dst = dst,
                     .src_head = local,
                     .dst_head = distinct,
                     .count = count,
                     .mode = GradMode::kAccumulate});
  });
}

std::int64_t num_q(const HeadShare& share) { return share.q_end - share.q_begin; }

BiasTables local_bias(const BiasTables& bias, const HeadShare& share) {
  BiasTables local = bias;
  if (bias.slopes.defined()) local.slopes = bias.slopes.rows(share.q_begin, num_q(share));
  return local;
}

// dO and delta of all tokens of the place for this rank's heads: dout (T', Hq', D), delta (Hq',
// T'), from dout_in and delta_in of its own tokens and all heads.
void spread_gradient(const Group& group, Tensor dout_in, Tensor delta_in, Tensor dout, Tensor delta,
                     const StepContext& ctx) {
  auto scope = ctx.scratch.scope();
  const std::int64_t head_dim = dout.shape[2], tokens = group.my_tokens();
  const std::int64_t my_heads = num_q(group.mine());
  ParcelExchange exchange(group, ctx);
  for (std::size_t u = 0; u < group.heads.size(); ++u) {
    const std::int64_t heads = num_q(group.heads[u]), others = group.tokens[u].size();
    exchange.add({{DType::kF32, {heads, tokens}}, {dout.dtype, {tokens, heads, head_dim}}},
                 {{DType::kF32, {my_heads, others}}, {dout.dtype, {others, my_heads, head_dim}}},
                 "attention.dout_parcel");
  }
  exchange.run(
      [&](std::size_t u, const std::vector<Tensor>& to) {
        const HeadShare& share = group.heads[u];
        const Tensor heads = delta_in.rows(share.q_begin, num_q(share));
        ctx.kernels().copy({.src = heads, .dst = to[0]}, ctx.stream());
        copy_heads(
            ctx, {.src = dout_in, .dst = to[1], .src_head = share.q_begin, .count = num_q(share)});
      },
      [&](std::size_t u, const std::vector<Tensor>& from) {
        ctx.kernels().copy_2d({.src = from[0],
                               .dst = delta,
                               .rows = my_heads,
                               .cols = group.tokens[u].size(),
                               .src_stride = group.tokens[u].size(),
                               .dst_begin = group.tokens[u].begin,
                               .dst_stride = group.rows},
                              ctx.stream());
        ctx.kernels().copy({.src = from[1], .dst = group.part(dout, u)}, ctx.stream());
      });
}

// The gradients of the merged rows and this rank's heads, brought home and summed over copies.
void return_gradients(const Group& group, const AttentionGradients& merged, DType compute,
                      const AttentionGradients& grads, const StepContext& ctx) {
  auto scope = ctx.scratch.scope();
  const std::int64_t head_dim = merged.dq.shape[2], tokens = group.my_tokens();
  const HeadShare& mine = group.mine();
  const DType kv = mine.shared ? DType::kF32 : compute;
  ParcelExchange exchange(group, ctx);
  for (std::size_t u = 0; u < group.heads.size(); ++u) {
    const std::int64_t others = group.tokens[u].size();
    const HeadShare& share = group.heads[u];
    const Shape to_kv{others, mine.num_distinct(), head_dim};
    const Shape from_kv{tokens, share.num_distinct(), head_dim};
    exchange.add({{kv, to_kv}, {kv, to_kv}, {compute, {others, num_q(mine), head_dim}}},
                 {{kv, from_kv}, {kv, from_kv}, {compute, {tokens, num_q(share), head_dim}}},
                 "attention.dqkv_parcel");
  }
  if (mine.shared)
    for (const Tensor& grad : {grads.dk, grads.dv})
      ctx.kernels().fill({.dst = grad, .value = 0}, ctx.stream());
  exchange.run(
      [&](std::size_t u, const std::vector<Tensor>& to) {
        fold_heads(ctx, mine, group.part(merged.dk, u), to[0]);
        fold_heads(ctx, mine, group.part(merged.dv, u), to[1]);
        ctx.kernels().copy({.src = group.part(merged.dq, u), .dst = to[2]}, ctx.stream());
      },
      [&](std::size_t u, const std::vector<Tensor>& from) {
        const HeadShare& share = group.heads[u];
        for (const auto& [src, dst] : {std::pair{from[0], grads.dk}, {from[1], grads.dv}})
          copy_heads(ctx, {.src = src,
                           .dst = dst,
                           .dst_head = share.kv_heads.front(),
                           .count = share.num_distinct(),
                           .mode = mine.shared ? GradMode::kAccumulate : GradMode::kOverwrite});
        copy_heads(
            ctx,
            {.src = from[2], .dst = grads.dq, .dst_head = share.q_begin, .count = num_q(share)});
      });
}

}  // namespace

AttentionInputs UlyssesAttention::spread(const AttentionInputs& in, Arena& arena,
                                         const StepContext& ctx) const {
  const Group group(in.q.shape[1], in.k.shape[1], ctx);
  const HeadShare& mine = group.mine();
  const std::int64_t tokens = in.q.shape[0], head_dim = in.q.shape[2];
  const DType dtype = in.q.dtype;
  FARSPAN_CHECK(tokens == group.my_tokens(), "{} tokens where Ulysses rank {} of {} has {} of {}",
                tokens, group.rank, group.size(), group.my_tokens(), group.rows);
  const Shape kv_shape{group.rows, static_cast<std::int64_t>(mine.kv_heads.size()), head_dim};
  const AttentionInputs out{
      .q = arena.take(dtype, {group.rows, num_q(mine), head_dim}, "attention.q"),
      .k = arena.take(dtype, kv_shape, "attention.k"),
      .v = arena.take(dtype, kv_shape, "attention.v")};
  auto scope = ctx.scratch.scope();
  ParcelExchange exchange(group, ctx);
  for (std::size_t u = 0; u < group.heads.size(); ++u) {
    const std::int64_t others = group.tokens[u].size();
    const HeadShare& share = group.heads[u];
    const Shape to_kv{tokens, share.num_distinct(), head_dim};
    const Shape from_kv{others, mine.num_distinct(), head_dim};
    exchange.add({{dtype, {tokens, num_q(share), head_dim}}, {dtype, to_kv}, {dtype, to_kv}},
                 {{dtype, {others, num_q(mine), head_dim}}, {dtype, from_kv}, {dtype, from_kv}},
                 "attention.qkv_parcel");
  }
  exchange.run(
      [&](std::size_t u, const std::vector<Tensor>& to) {
        const HeadShare& share = group.heads[u];
        copy_heads(ctx,
                   {.src = in.q, .dst = to[0], .src_head = share.q_begin, .count = num_q(share)});
        for (const auto& [src, dst] : {std::pair{in.k, to[1]}, {in.v, to[2]}})
          copy_heads(ctx, {.src = src,
                           .dst = dst,
                           .src_head = share.kv_heads.front(),
                           .count = share.num_distinct()});
      },
      [&](std::size_t u, const std::vector<Tensor>& from) {
        ctx.kernels().copy({.src = from[0], .dst = group.part(out.q, u)}, ctx.stream());
        expand_heads(ctx, mine, from[1], group.part(out.k, u));
        expand_heads(ctx, mine, from[2], group.part(out.v, u));
      });
  return out;
}

void UlyssesAttention::forward(const AttentionInputs& in, Tensor out, Tensor lse,
                               const BiasTables& bias, const StepContext& ctx) const {
  // O has query heads only: how they share KV heads does not matter here.
  const Group group(out.shape[1], out.shape[1], ctx);
  const HeadShare& mine = group.mine();
  if (group.size() == 1) {
    ring_forward(in, out, lse, bias, ctx);
    return;
  }
  auto scope = ctx.scratch.scope();
  const Tensor merged = ctx.scratch.take(out.dtype, in.q.shape, "attention.out_merged");
  ring_forward(in, merged, lse, local_bias(bias, mine), ctx);
  // O of one rank's tokens lies in one piece: it is sent from there.
  std::vector<Message> sends, recvs;
  std::vector<Tensor> parts;
  for (int u = 0; u < group.size(); ++u) {
    const auto at = static_cast<std::size_t>(u);
    parts.push_back(group.part(merged, at));
    if (u == group.rank) continue;
    sends.push_back({u, parts.back()});
    const Shape theirs{out.shape[0], num_q(group.heads[at]), out.shape[2]};
    parts.back() = ctx.scratch.take(out.dtype, theirs, "attention.out_part");
    recvs.push_back({u, parts.back()});
  }
  Pending pending = ctx.mesh.ulysses().exchange(sends, recvs, ctx.stream());
  wait_exposed(ctx, pending);
  for (std::size_t u = 0; u < parts.size(); ++u) {
    const HeadShare& share = group.heads[u];
    copy_heads(ctx,
               {.src = parts[u], .dst = out, .dst_head = share.q_begin, .count = num_q(share)});
  }
}

void UlyssesAttention::backward(const AttentionInputs& in, Tensor out, Tensor lse, Tensor dout,
                                const BiasTables& bias, const AttentionGradients& grads,
                                const StepContext& ctx) const {
  const Group group(out.shape[1], grads.dk.shape[1], ctx);
  auto scope = ctx.scratch.scope();
  const Tensor delta =
      ctx.scratch.take(DType::kF32, {out.shape[1], out.shape[0]}, "attention.delta");
  ctx.kernels().attention_delta({.out = out, .dout = dout, .delta = delta}, ctx.stream());
  if (group.size() == 1) {
    ring_backward(in, out, lse, delta, dout, bias, grads, ctx);
    return;
  }
  const AttentionGradients merged{
      .dq = ctx.scratch.take(DType::kF32, in.q.shape, "attention.dq_merged"),
      .dk = ctx.scratch.take(DType::kF32, in.k.shape, "attention.dk_merged"),
      .dv = ctx.scratch.take(DType::kF32, in.v.shape, "attention.dv_merged")};
  {
    auto inner = ctx.scratch.scope();
    const Tensor merged_dout = ctx.scratch.take(dout.dtype, in.q.shape, "attention.dout_merged");
    const Tensor merged_delta = ctx.scratch.take(DType::kF32, lse.shape, "attention.delta_merged");
    spread_gradient(group, dout, delta, merged_dout, merged_delta, ctx);
    // The other ranks' rows of out stay where they are: delta travels in their place.
    ring_backward(in, Tensor{}, lse, merged_delta, merged_dout, local_bias(bias, group.mine()),
                  merged, ctx);
  }
  return_gradients(group, merged, dout.dtype, grads, ctx);
}

}  // namespace farspan
