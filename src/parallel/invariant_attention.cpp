#include "parallel/invariant_attention.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "parallel/attention_parts.h"

namespace farspan {
namespace {

using Slices = std::vector<AttentionSlice>;

const AttentionPlan::Gather& gather_of(const StepContext& ctx) {
  const AttentionPlan::Gather& gather = ctx.plan().gather;
  FARSPAN_CHECK(static_cast<int>(gather.num_sent.size()) == ctx.mesh.ring().size(),
                "a plan without what all-gather exchanges");
  return gather;
}

// What one rank gets or sends of a tensor's rows, which lie in rank order.
struct Share {
  int peer = 0;
  std::int64_t begin = 0, count = 0;
};
std::vector<Share> shares(const std::vector<std::int64_t>& counts) {
  std::vector<Share> list;
  std::int64_t row = 0;
  for (std::size_t peer = 0; peer < counts.size(); ++peer) {
    list.push_back({static_cast<int>(peer), row, counts[peer]});
    row += counts[peer];
  }
  return list;
}

// Messages of the shares of other ranks than this one.
std::vector<Message> messages(Tensor rows, const std::vector<std::int64_t>& counts, int rank) {
  std::vector<Message> list;
  for (const Share& s : shares(counts))
    if (s.peer != rank && s.count > 0) list.push_back({s.peer, rows.rows(s.begin, s.count)});
  return list;
}

std::int64_t total(const std::vector<std::int64_t>& counts) {
  return std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
}

// Trades rows with the other ranks; a rank alone has nobody to ask.
void exchange(Tensor send, const std::vector<std::int64_t>& num_sent, Tensor recv,
              const std::vector<std::int64_t>& num_received, const StepContext& ctx) {
  Communicator& ring = ctx.mesh.ring();
  if (ring.size() == 1) return;
  Pending pending = ring.exchange(messages(send, num_sent, ring.rank()),
                                  messages(recv, num_received, ring.rank()), ctx.stream());
  wait_exposed(ctx, pending);
}

// The rows of `local` (T, H, D) that ranks need sent to them; returns those that this one needs,
// its own among them.
Tensor gather_rows(Tensor local, std::string_view name, const StepContext& ctx) {
  const AttentionPlan::Gather& plan = gather_of(ctx);
  const int rank = ctx.mesh.ring().rank();
  const Tensor gathered = ctx.scratch.take(local.dtype, local.shape.with_rows(plan.rows), name);
  auto scope = ctx.scratch.scope();
  const Tensor packed = ctx.scratch.take(local.dtype, local.shape.with_rows(total(plan.num_sent)),
                                         "attention.kv_packed");
  for (const Share& s : shares(plan.num_sent))
    if (s.peer != rank)
      pack_rows(ctx, local, plan.sent[static_cast<std::size_t>(s.peer)],
                packed.rows(s.begin, s.count));
  const auto own = static_cast<std::size_t>(rank);
  const Share mine = shares(plan.num_received)[own];
  pack_rows(ctx, local, plan.sent[own], gathered.rows(mine.begin, mine.count));
  exchange(packed, plan.num_sent, gathered, plan.num_received, ctx);
  return gathered;
}

// One block of queries: local rows [begin, end) and its slices, which count rows from `begin`.
struct QueryBlock {
  std::int64_t begin = 0, end = 0;
  Slices slices;
  std::int64_t rows() const { return end - begin; }
};

// Calls body(block) for each of this rank's blocks, in order.
template <typename Body>
void for_each_block(const StepContext& ctx, const Body& body) {
  const std::span<const std::int64_t> borders = ctx.row_blocks;
  FARSPAN_CHECK(!borders.empty(), "invariant attention without blocks of rows");
  const auto block_of = [&](const AttentionSlice& s) {
    return std::upper_bound(borders.begin(), borders.end(), s.q_begin) - borders.begin() - 1;
  };
  // A block's slices as the plan orders them; blocks as they lie here.
  Slices slices = gather_of(ctx).slices;
  std::stable_sort(slices.begin(), slices.end(),
                   [&](const auto& a, const auto& b) { return block_of(a) < block_of(b); });
  std::size_t next = 0;
  for (std::size_t b = 0; b + 1 < borders.size(); ++b) {
    QueryBlock block{.begin = borders[b], .end = borders[b + 1], .slices = {}};
    if (block.rows() == 0) continue;
    for (; next < slices.size() && slices[next].q_begin < block.end; ++next) {
      AttentionSlice slice = slices[next];
      FARSPAN_CHECK(slice.q_begin >= block.begin && slice.q_begin + slice.q_len <= block.end,
                    "a slice of rows [{}, +{}) crosses the block [{}, {})", slice.q_begin,
                    slice.q_len, block.begin, block.end);
      slice.q_begin -= block.begin;
      block.slices.push_back(slice);
    }
    body(block);
  }
  FARSPAN_CHECK(next == slices.size(), "{} of {} slices lie in no block of queries",
                slices.size() - next, slices.size());
}

// Columns [begin, begin + n) of wide (H, T) from or to narrow (H, n).
void copy_columns(const StepContext& ctx, Tensor src, std::int64_t src_begin, Tensor dst,
                  std::int64_t dst_begin) {
  ctx.kernels().copy_2d({.src = src,
                         .dst = dst,
                         .rows = src.shape[0],
                         .cols = std::min(src.shape[1], dst.shape[1]),
                         .src_begin = src_begin,
                         .src_stride = src.shape[1],
                         .dst_begin = dst_begin,
                         .dst_stride = dst.shape[1]},
                        ctx.stream());
}

// Keys that a block's slices touch, as disjoint runs of rows.
std::vector<IndexRange> touched_keys(const Slices& slices) {
  std::vector<IndexRange> runs;
  for (const AttentionSlice& s : slices)
    if (s.q_len > 0 && s.k_len > 0) runs.push_back({s.k_begin, s.k_begin + s.k_len});
  std::sort(runs.begin(), runs.end(),
            [](const IndexRange& a, const IndexRange& b) { return a.begin < b.begin; });
  std::vector<IndexRange> merged;
  for (const IndexRange& run : runs)
    if (!merged.empty() && run.begin <= merged.back().end)
      merged.back().end = std::max(merged.back().end, run.end);
    else
      merged.push_back(run);
  return merged;
}

// The gradient of gathered keys (or values) as exact sums, and their way home.
class ExactGradient {
 public:
  // shape: (rows of the gathered block, H, D).
  ExactGradient(Shape shape, const StepContext& ctx) : ctx_(ctx) {
    partial_ = ctx.scratch.take(DType::kF32, shape, "attention.dkv_partial");
    sum_ = zero_sum(shape);
  }

  // Where the kernel adds one block's share.
  Tensor partial() const { return partial_; }
  void clear(const std::vector<IndexRange>& runs) const {
    for (const IndexRange& r : runs)
      ctx_.kernels().fill({.dst = partial_.rows(r.begin, r.size()), .value = 0}, ctx_.stream());
  }
  void add(const std::vector<IndexRange>& runs) const {
    for (const IndexRange& r : runs)
      ctx_.kernels().exact_add({.src = partial_.rows(r.begin, r.size()),
                                .ids = {},
                                .sum = {sum_.high.rows(r.begin, r.size()),
                                        sum_.low.rows(r.begin, r.size()), sum_.invalid}},
                               ctx_.stream());
  }

  // Every rank's share of this rank's rows, added and rounded into grad (T, H, D) f32. Terms
  // without a place make all of this rank's gradient NaN, and with it the whole step's.
  void read(Tensor grad) const {
    auto scope = ctx_.scratch.scope();
    ExactSum mine = zero_sum(grad.shape);
    mine.invalid = sum_.invalid;
    add_home(sum_.high, mine.high);
    add_home(sum_.low, mine.low);
    ctx_.kernels().exact_read({.sum = mine, .dst = grad}, ctx_.stream());
  }

 private:
  ExactSum zero_sum(Shape shape) const {
    const ExactSum sum{ctx_.scratch.take(DType::kI64, shape, "attention.exact_high"),
                       ctx_.scratch.take(DType::kI64, shape, "attention.exact_low"),
                       ctx_.scratch.take(DType::kI64, {1}, "attention.exact_invalid")};
    for (const Tensor& t : {sum.high, sum.low, sum.invalid})
      ctx_.kernels().fill({.dst = t, .value = 0}, ctx_.stream());
    return sum;
  }

  void add_home(Tensor gathered, Tensor mine) const {
    const AttentionPlan::Gather& plan = gather_of(ctx_);
    const int rank = ctx_.mesh.ring().rank();
    auto scope = ctx_.scratch.scope();
    const Tensor home = ctx_.scratch.take(DType::kI64, mine.shape.with_rows(total(plan.num_sent)),
                                          "attention.exact_home");
    exchange(gathered, plan.num_received, home, plan.num_sent, ctx_);
    const Share own = shares(plan.num_received)[static_cast<std::size_t>(rank)];
    for (const Share& s : shares(plan.num_sent))
      add_rows(ctx_,
               s.peer == rank ? gathered.rows(own.begin, own.count) : home.rows(s.begin, s.count),
               plan.sent[static_cast<std::size_t>(s.peer)], mine);
  }

  const StepContext& ctx_;
  Tensor partial_;
  ExactSum sum_;
};

}  // namespace

void InvariantAttention::forward(const AttentionInputs& in, Tensor out, Tensor lse,
                                 const BiasTables& bias, const StepContext& ctx) const {
  auto scope = ctx.scratch.scope();
  const Tensor k = gather_rows(in.k, "attention.k_gathered", ctx);
  const Tensor v = gather_rows(in.v, "attention.v_gathered", ctx);
  const std::int64_t num_heads = in.q.shape[1];
  for_each_block(ctx, [&](const QueryBlock& block) {
    auto block_scope = ctx.scratch.scope();
    const Tensor q = in.q.rows(block.begin, block.rows());
    const Shape stats{num_heads, block.rows()};
    const Tensor block_lse = ctx.scratch.take(DType::kF32, stats, "attention.block_lse");
    ctx.kernels().attention_forward(
        {.q = q,
         .k = k,
         .v = v,
         .acc = ctx.scratch.take(DType::kF32, q.shape, "attention.accumulator"),
         .row_max = ctx.scratch.take(DType::kF32, stats, "attention.row_max"),
         .row_sum = ctx.scratch.take(DType::kF32, stats, "attention.row_sum"),
         .slices = block.slices,
         .scale = score_scale(q),
         .bias = position_bias(bias, ctx),
         .invariant = true,
         .first = true,
         .last = true,
         .out = out.rows(block.begin, block.rows()),
         .lse = block_lse},
        ctx.stream());
    copy_columns(ctx, block_lse, 0, lse, block.begin);
  });
}

void InvariantAttention::backward(const AttentionInputs& in, Tensor out, Tensor lse, Tensor dout,
                                  const BiasTables& bias, const AttentionGradients& grads,
                                  const StepContext& ctx) const {
  auto scope = ctx.scratch.scope();
  const Tensor k = gather_rows(in.k, "attention.k_gathered", ctx);
  const Tensor v = gather_rows(in.v, "attention.v_gathered", ctx);
  const ExactGradient dk(k.shape, ctx), dv(v.shape, ctx);
  ctx.kernels().fill({.dst = grads.dq, .value = 0}, ctx.stream());
  for_each_block(ctx, [&](const QueryBlock& block) {
    auto block_scope = ctx.scratch.scope();
    const auto rows = [&](const Tensor& t) { return t.rows(block.begin, block.rows()); };
    const Shape stats{lse.shape[0], block.rows()};
    const Tensor block_lse = ctx.scratch.take(DType::kF32, stats, "attention.block_lse");
    const Tensor delta = ctx.scratch.take(DType::kF32, stats, "attention.delta");
    copy_columns(ctx, lse, block.begin, block_lse, 0);
    ctx.kernels().attention_delta({.out = rows(out), .dout = rows(dout), .delta = delta},
                                  ctx.stream());
    const std::vector<IndexRange> touched = touched_keys(block.slices);
    dk.clear(touched);
    dv.clear(touched);
    ctx.kernels().attention_backward({.q = rows(in.q),
                                      .k = k,
                                      .v = v,
                                      .dout = rows(dout),
                                      .lse = block_lse,
                                      .delta = delta,
                                      .dq = rows(grads.dq),
                                      .dk = dk.partial(),
                                      .dv = dv.partial(),
                                      .slices = block.slices,
                                      .scale = score_scale(in.q),
                                      .bias = position_bias(bias, ctx),
                                      .invariant = true},
                                     ctx.stream());
    dk.add(touched);
    dv.add(touched);
  });
  dk.read(grads.dk);
  dv.read(grads.dv);
}

}  // namespace farspan
