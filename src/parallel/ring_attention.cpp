#include "parallel/ring_attention.h"

#include <array>
#include <utility>
#include <vector>

#include "parallel/attention_parts.h"

namespace farspan {
namespace {

// Two row blocks of equal length in one buffer, so that one message carries both: K then V, or dK
// then dV. buffer: (2 * max_rows, Hkv, D).
struct Pair {
  Tensor buffer;

  Tensor message(std::int64_t rows) const { return buffer.rows(0, 2 * rows); }
  Tensor first(std::int64_t rows) const { return buffer.rows(0, rows); }
  Tensor second(std::int64_t rows) const { return buffer.rows(rows, rows); }
};

Pair take_pair(Arena& arena, const Tensor& like, DType dtype, std::int64_t max_rows,
               std::string_view name) {
  return {arena.take(dtype, like.shape.with_rows(2 * max_rows), name)};
}

// The journey of K and V round the ring: at() gives the block of the hop at hand, start() sends on
// what later ranks need, finish() steps to the next hop.
class KvRing {
 public:
  KvRing(const AttentionInputs& in, const StepContext& ctx)
      : ctx_(ctx), plan_(ctx.plan()), ring_(ctx.mesh.ring()), k_(in.k), v_(in.v) {
    if (ctx.plan().hops.size() < 2) return;
    for (Pair& pair : buffers_)
      pair = take_pair(ctx.scratch, in.k, in.k.dtype, ctx.plan().max_rows, "attention.kv_buffer");
    packed_ = take_pair(ctx.scratch, in.k, in.k.dtype, ctx.plan().max_rows, "attention.kv_packed");
  }

  Tensor k() const { return k_; }
  Tensor v() const { return v_; }

  void start(std::size_t h) {
    if (h + 1 >= plan_.hops.size()) return;
    const AttentionPlan::Hop& hop = plan_.hops[h];
    const int size = ring_.size(), rank = ring_.rank();
    Tensor send;
    if (h > 0 && hop.num_forwarded == hop.kv_rows) {
      send = buffers_[h % 2].message(hop.kv_rows);  // all of it goes on: no packing
    } else {
      pack_rows(ctx_, k_, hop.forwarded, packed_.first(hop.num_forwarded));
      pack_rows(ctx_, v_, hop.forwarded, packed_.second(hop.num_forwarded));
      send = packed_.message(hop.num_forwarded);
    }
    const Message to{(rank + 1) % size, send};
    const Message from{(rank + size - 1) % size,
                       buffers_[(h + 1) % 2].message(plan_.hops[h + 1].kv_rows)};
    pending_ = ring_.exchange({&to, 1}, {&from, 1}, ctx_.stream());
  }

  void finish(std::size_t h) {
    if (h + 1 >= plan_.hops.size()) return;
    wait_exposed(ctx_, pending_);
    const std::int64_t rows = plan_.hops[h + 1].kv_rows;
    k_ = buffers_[(h + 1) % 2].first(rows);
    v_ = buffers_[(h + 1) % 2].second(rows);
  }

 private:
  const StepContext& ctx_;
  const AttentionPlan& plan_;
  Communicator& ring_;
  Tensor k_, v_;
  std::array<Pair, 2> buffers_;
  Pair packed_;
  Pending pending_;
};

// Partial dK, dV: received one hop behind their block, summed with this rank's part, sent on or
// back to the owner.
class GradientRing {
 public:
  GradientRing(const AttentionGradients& grads, const StepContext& ctx)
      : ctx_(ctx), plan_(ctx.plan()), ring_(ctx.mesh.ring()), grads_(grads) {
    if (ctx.plan().hops.size() < 2) return;
    for (auto [pair, name] : {std::pair{&partial_, "attention.dkv_partial"},
                              {&sent_, "attention.dkv_sent"},
                              {&arriving_, "attention.dkv_arriving"},
                              {&home_, "attention.dkv_home"}})
      *pair = take_pair(ctx.scratch, grads.dk, DType::kF32, ctx.plan().max_rows, name);
  }

  // Where the kernels put this rank's part for hop h's block, starting from zero.
  AttentionGradients begin(std::size_t h) {
    if (h == 0) return grads_;
    const std::int64_t rows = plan_.hops[h].kv_rows;
    ctx_.kernels().fill({.dst = partial_.message(rows), .value = 0}, ctx_.stream());
    return {.dq = grads_.dq, .dk = partial_.first(rows), .dv = partial_.second(rows)};
  }

  // After the kernels of hop h.
  void end(std::size_t h) {
    if (h == 0) return;
    const AttentionPlan::Hop& hop = plan_.hops[h];
    collect(h - 1);
    if (h > 1) {
      const Tensor sum = partial_.message(hop.kv_rows);
      ctx_.kernels().add({.a = sum, .b = arriving_.message(hop.kv_rows), .out = sum},
                         ctx_.stream());
    }
    start(h);
  }

  // After the last hop.
  void finish() { collect(plan_.hops.size() - 1); }

 private:
  // Sends the finished sums of hop h: on to the next rank, or home.
  void start(std::size_t h) {
    const AttentionPlan::Hop& hop = plan_.hops[h];
    const int size = ring_.size(), rank = ring_.rank(), distance = static_cast<int>(h);
    Tensor onward, homeward;
    if (hop.num_ended == 0 || hop.num_forwarded == 0) {
      std::swap(partial_, sent_);  // all rows go the same way: no packing
      (hop.num_ended == 0 ? onward : homeward) = sent_.message(hop.kv_rows);
    } else {
      onward = sent_.buffer.rows(0, 2 * hop.num_forwarded);
      homeward = sent_.buffer.rows(2 * hop.num_forwarded, 2 * hop.num_ended);
      const Tensor dk = partial_.first(hop.kv_rows), dv = partial_.second(hop.kv_rows);
      pack_rows(ctx_, dk, hop.forwarded, onward.rows(0, hop.num_forwarded));
      pack_rows(ctx_, dv, hop.forwarded, onward.rows(hop.num_forwarded, hop.num_forwarded));
      pack_rows(ctx_, dk, hop.ended, homeward.rows(0, hop.num_ended));
      pack_rows(ctx_, dv, hop.ended, homeward.rows(hop.num_ended, hop.num_ended));
    }
    std::vector<Message> sends, recvs;
    if (hop.num_forwarded > 0) sends.push_back({(rank + 1) % size, onward});
    if (hop.num_ended > 0) sends.push_back({(rank + size - distance) % size, homeward});
    if (h + 1 < plan_.hops.size() && plan_.hops[h + 1].kv_rows > 0)
      recvs.push_back({(rank + size - 1) % size, arriving_.message(plan_.hops[h + 1].kv_rows)});
    if (hop.num_returned > 0)
      recvs.push_back({(rank + distance) % size, home_.message(hop.num_returned)});
    pending_ = ring_.exchange(sends, recvs, ctx_.stream());
  }

  // Waits for what hop h sent and received; rows that came home join the owner's sums.
  void collect(std::size_t h) {
    if (h == 0) return;
    wait_exposed(ctx_, pending_);
    const AttentionPlan::Hop& hop = plan_.hops[h];
    add_rows(ctx_, home_.first(hop.num_returned), hop.returned, grads_.dk);
    add_rows(ctx_, home_.second(hop.num_returned), hop.returned, grads_.dv);
  }

  const StepContext& ctx_;
  const AttentionPlan& plan_;
  Communicator& ring_;
  AttentionGradients grads_;
  Pair partial_, sent_, arriving_, home_;
  Pending pending_;
};

}  // namespace

void ring_forward(const AttentionInputs& in, Tensor out, Tensor lse, const BiasTables& bias,
                  const StepContext& ctx) {
  auto scope = ctx.scratch.scope();
  const std::int64_t num_tokens = in.q.shape[0], num_heads = in.q.shape[1];
  const Tensor acc = ctx.scratch.take(DType::kF32, in.q.shape, "attention.accumulator");
  const Tensor row_max =
      ctx.scratch.take(DType::kF32, {num_heads, num_tokens}, "attention.row_max");
  const Tensor row_sum =
      ctx.scratch.take(DType::kF32, {num_heads, num_tokens}, "attention.row_sum");
  KvRing kv(in, ctx);
  const std::size_t num_hops = ctx.plan().hops.size();
  for (std::size_t h = 0; h < num_hops; ++h) {
    kv.start(h);
    ctx.kernels().attention_forward({.q = in.q,
                                     .k = kv.k(),
                                     .v = kv.v(),
                                     .acc = acc,
                                     .row_max = row_max,
                                     .row_sum = row_sum,
                                     .slices = ctx.plan().hops[h].slices,
                                     .scale = score_scale(in.q),
                                     .bias = position_bias(bias, ctx),
                                     .first = h == 0,
                                     .last = h + 1 == num_hops,
                                     .out = out,
                                     .lse = lse},
                                    ctx.stream());
    kv.finish(h);
  }
}

void ring_backward(const AttentionInputs& in, Tensor out, Tensor lse, Tensor delta, Tensor dout,
                   const BiasTables& bias, const AttentionGradients& grads,
                   const StepContext& ctx) {
  auto scope = ctx.scratch.scope();
  for (const Tensor& grad : {grads.dq, grads.dk, grads.dv})
    ctx.kernels().fill({.dst = grad, .value = 0}, ctx.stream());
  KvRing kv(in, ctx);
  GradientRing gradients(grads, ctx);
  for (std::size_t h = 0; h < ctx.plan().hops.size(); ++h) {
    kv.start(h);
    const AttentionGradients part = gradients.begin(h);
    ctx.kernels().attention_backward({.q = in.q,
                                      .k = kv.k(),
                                      .v = kv.v(),
                                      .dout = dout,
                                      .lse = lse,
                                      .delta = delta,
                                      .dq = part.dq,
                                      .dk = part.dk,
                                      .dv = part.dv,
                                      .slices = ctx.plan().hops[h].slices,
                                      .scale = score_scale(in.q),
                                      .bias = position_bias(bias, ctx),
                                      .deterministic = ctx.deterministic,
                                      .out = out},
                                     ctx.stream());
    gradients.end(h);
    kv.finish(h);
  }
  gradients.finish();
}

void RingAttention::forward(const AttentionInputs& in, Tensor out, Tensor lse,
                            const BiasTables& bias, const StepContext& ctx) const {
  ring_forward(in, out, lse, bias, ctx);
}

void RingAttention::backward(const AttentionInputs& in, Tensor out, Tensor lse, Tensor dout,
                             const BiasTables& bias, const AttentionGradients& grads,
                             const StepContext& ctx) const {
  auto scope = ctx.scratch.scope();
  const Tensor delta = ctx.scratch.take(DType::kF32, lse.shape, "attention.delta");
  ctx.kernels().attention_delta({.out = out, .dout = dout, .delta = delta}, ctx.stream());
  ring_backward(in, out, lse, delta, dout, bias, grads, ctx);
}

}  // namespace farspan
