#include "parallel/allgather_attention.h"

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "kernels/visible_pairs.h"
#include "parallel/attention_parts.h"

namespace farspan {
namespace {

using Slices = std::span<const AttentionSlice>;

// Rows of one tensor, (n, H, D), dealt out to or collected from the other ranks in rank order.
std::vector<Message> messages(Tensor rows, const std::vector<std::int64_t>& counts, int rank) {
  std::vector<Message> list;
  std::int64_t row = 0;
  for (int peer = 0; peer < static_cast<int>(counts.size()); ++peer) {
    const std::int64_t count = counts[static_cast<std::size_t>(peer)];
    FARSPAN_CHECK(peer != rank || count == 0, "{} rows gathered from this rank itself", count);
    if (count > 0) list.push_back({peer, rows.rows(row, count)});
    row += count;
  }
  return list;
}

std::int64_t total(const std::vector<std::int64_t>& counts) {
  return std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
}

// Two tensors (rows that this rank sends in all, H, D): its keys and values on their way out, or
// their gradients on their way home.
struct Outbox {
  Tensor k, v;

  static Outbox take(const Tensor& like, DType dtype, const StepContext& ctx,
                     std::string_view name) {
    const Shape shape = like.shape.with_rows(total(ctx.plan().gather.num_sent));
    return {ctx.scratch.take(dtype, shape, name), ctx.scratch.take(dtype, shape, name)};
  }
  // The same memory for elements of another type, no larger than these.
  Outbox as(DType dtype) const {
    FARSPAN_CHECK(size_of(dtype) <= size_of(k.dtype), "{} in room of {}", name_of(dtype),
                  k.to_string());
    return {{k.data, dtype, k.shape, k.device}, {v.data, dtype, v.shape, v.device}};
  }
};

// The other ranks' keys and values. K and V travel as two exchanges side by side: each then arrives
// as one dense block that the kernels read where it is, which one message of both would not give
// without a second copy of all that was gathered.
class KvGather {
 public:
  // Rows that do not lie in one piece are packed into `out`, which is free again after wait().
  KvGather(const AttentionInputs& in, const Outbox& out, const StepContext& ctx) : ctx_(ctx) {
    const AttentionPlan::Gather& plan = ctx.plan().gather;
    FARSPAN_CHECK(static_cast<int>(plan.num_sent.size()) == ctx.mesh.ring().size(),
                  "a plan without what all-gather exchanges");
    k_ = ctx.scratch.take(in.k.dtype, in.k.shape.with_rows(plan.rows), "attention.k_gathered");
    v_ = ctx.scratch.take(in.v.dtype, in.v.shape.with_rows(plan.rows), "attention.v_gathered");
    pending_k_ = start(in.k, out.k, k_);
    pending_v_ = start(in.v, out.v, v_);
  }

  Tensor k() const { return k_; }
  Tensor v() const { return v_; }

  void wait() {
    wait_exposed(ctx_, pending_k_);
    wait_exposed(ctx_, pending_v_);
  }

 private:
  Pending start(Tensor local, Tensor out, Tensor gathered) {
    const AttentionPlan::Gather& plan = ctx_.plan().gather;
    Communicator& ring = ctx_.mesh.ring();
    std::vector<Message> sends;
    std::int64_t row = 0;
    for (int peer = 0; peer < ring.size(); ++peer) {
      const std::int64_t count = plan.num_sent[static_cast<std::size_t>(peer)];
      if (peer == ring.rank() || count == 0) continue;
      sends.push_back({peer, sent_rows(local, plan.sent[static_cast<std::size_t>(peer)],
                                       out.rows(row, count))});
      row += count;
    }
    return ring.exchange(sends, messages(gathered, plan.num_received, ring.rank()), ctx_.stream());
  }

  // One run of rows is sent from where it lies.
  Tensor sent_rows(Tensor local, const std::vector<IndexRange>& ranges, Tensor packed) {
    if (ranges.size() == 1 && ranges[0].stride == 1)
      return local.rows(ranges[0].begin, ranges[0].size());
    pack_rows(ctx_, local, ranges, packed);
    return packed;
  }

  const StepContext& ctx_;
  Tensor k_, v_;
  Pending pending_k_, pending_v_;
};

// Sends the sums over others' rows home, and adds to this rank's what comes back.
class GradientReturn {
 public:
  // What comes back comes into `home`, f32.
  GradientReturn(const AttentionGradients& grads, const Outbox& home, const StepContext& ctx)
      : ctx_(ctx), grads_(grads), home_(home) {
    const AttentionPlan::Gather& plan = ctx.plan().gather;
    const Shape partial = grads.dk.shape.with_rows(plan.rows);
    dk_ = ctx.scratch.take(DType::kF32, partial, "attention.dk_gathered");
    dv_ = ctx.scratch.take(DType::kF32, partial, "attention.dv_gathered");
    for (const Tensor& sum : {dk_, dv_}) ctx.kernels().fill({.dst = sum, .value = 0}, ctx.stream());
  }

  Tensor dk() const { return dk_; }
  Tensor dv() const { return dv_; }

  void start() {
    pending_k_ = start(dk_, home_.k);
    pending_v_ = start(dv_, home_.v);
  }

  void finish() {
    wait_exposed(ctx_, pending_k_);
    wait_exposed(ctx_, pending_v_);
    const AttentionPlan::Gather& plan = ctx_.plan().gather;
    std::int64_t row = 0;
    for (std::size_t peer = 0; peer < plan.sent.size(); ++peer) {
      const std::int64_t count = plan.num_sent[peer];
      add_rows(ctx_, home_.k.rows(row, count), plan.sent[peer], grads_.dk);
      add_rows(ctx_, home_.v.rows(row, count), plan.sent[peer], grads_.dv);
      row += count;
    }
  }

 private:
  Pending start(Tensor partial, Tensor home) {
    const AttentionPlan::Gather& plan = ctx_.plan().gather;
    Communicator& ring = ctx_.mesh.ring();
    return ring.exchange(messages(partial, plan.num_received, ring.rank()),
                         messages(home, plan.num_sent, ring.rank()), ctx_.stream());
  }

  const StepContext& ctx_;
  AttentionGradients grads_;
  Outbox home_;
  Tensor dk_, dv_;
  Pending pending_k_, pending_v_;
};

// How many of the slices come first when the work is cut at about `share` of it.
std::size_t cut_work(Slices slices, double share, std::int64_t num_kv_heads) {
  std::vector<double> until{0};
  for (const AttentionSlice& s : slices) {
    const auto heads =
        std::min<std::int64_t>(s.kv_heads.end, num_kv_heads) - std::int64_t{s.kv_heads.begin};
    until.push_back(until.back() + static_cast<double>(visible_pairs(s) * heads));
  }
  const double wanted = share * until.back();
  const auto above = std::lower_bound(until.begin(), until.end(), wanted);
  const auto cut = static_cast<std::size_t>(above - until.begin());
  return cut > 0 && wanted - until[cut - 1] < until[cut] - wanted ? cut - 1 : cut;
}

}  // namespace

void AllgatherAttention::forward(const AttentionInputs& in, Tensor out, Tensor lse,
                                 const BiasTables& bias, const StepContext& ctx) const {
  auto scope = ctx.scratch.scope();
  const std::int64_t num_tokens = in.q.shape[0], num_heads = in.q.shape[1];
  const Shape rows{num_heads, num_tokens};
  AttentionForwardArgs args{
      .q = in.q,
      .k = in.k,
      .v = in.v,
      .acc = ctx.scratch.take(DType::kF32, in.q.shape, "attention.accumulator"),
      .row_max = ctx.scratch.take(DType::kF32, rows, "attention.row_max"),
      .row_sum = ctx.scratch.take(DType::kF32, rows, "attention.row_sum"),
      .slices = ctx.plan().hops[0].slices,
      .scale = score_scale(in.q),
      .bias = position_bias(bias, ctx),
      .first = true,
      .last = ctx.mesh.ring().size() == 1,
      .out = out,
      .lse = lse};
  if (args.last) {
    ctx.kernels().attention_forward(args, ctx.stream());
    return;
  }
  KvGather kv(in, Outbox::take(in.k, in.k.dtype, ctx, "attention.kv_packed"), ctx);
  ctx.kernels().attention_forward(args, ctx.stream());
  kv.wait();
  args.k = kv.k();
  args.v = kv.v();
  args.slices = ctx.plan().gather.slices;
  args.first = false;
  args.last = true;
  ctx.kernels().attention_forward(args, ctx.stream());
}

void AllgatherAttention::backward(const AttentionInputs& in, Tensor out, Tensor lse, Tensor dout,
                                  const BiasTables& bias, const AttentionGradients& grads,
                                  const StepContext& ctx) const {
  auto scope = ctx.scratch.scope();
  const Tensor delta = ctx.scratch.take(DType::kF32, lse.shape, "attention.delta");
  ctx.kernels().attention_delta({.out = out, .dout = dout, .delta = delta}, ctx.stream());
  for (const Tensor& grad : {grads.dq, grads.dk, grads.dv})
    ctx.kernels().fill({.dst = grad, .value = 0}, ctx.stream());
  const auto compute = [&](Tensor k, Tensor v, Tensor dk, Tensor dv, Slices slices) {
    ctx.kernels().attention_backward({.q = in.q,
                                      .k = k,
                                      .v = v,
                                      .dout = dout,
                                      .lse = lse,
                                      .delta = delta,
                                      .dq = grads.dq,
                                      .dk = dk,
                                      .dv = dv,
                                      .slices = slices,
                                      .scale = score_scale(in.q),
                                      .bias = position_bias(bias, ctx),
                                      .deterministic = ctx.deterministic,
                                      .out = out},
                                     ctx.stream());
  };
  const Slices own = ctx.plan().hops[0].slices;
  if (ctx.mesh.ring().size() == 1) {
    compute(in.k, in.v, grads.dk, grads.dv, own);
    return;
  }
  // Rows have left before the first gradient comes home: both in one place.
  const Outbox outbox = Outbox::take(grads.dk, DType::kF32, ctx, "attention.dkv_home");
  KvGather kv(in, outbox.as(in.k.dtype), ctx);
  // Keys and values come in half as many bytes as gradients go out, or less.
  const std::size_t cut = cut_work(own, 1.0 / 3, in.k.shape[1]);
  compute(in.k, in.v, grads.dk, grads.dv, own.first(cut));
  GradientReturn gradients(grads, outbox, ctx);
  kv.wait();
  compute(kv.k(), kv.v(), gradients.dk(), gradients.dv(), ctx.plan().gather.slices);
  gradients.start();
  compute(in.k, in.v, grads.dk, grads.dv, own.subspan(cut));
  gradients.finish();
}

}  // namespace farspan
