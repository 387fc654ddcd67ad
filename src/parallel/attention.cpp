#include "parallel/attention.h"

#include <numeric>

#include "parallel/allgather_attention.h"
#include "parallel/invariant_attention.h"
#include "parallel/ring_attention.h"
#include "parallel/ulysses_attention.h"

namespace farspan {
namespace {

// Bytes of one KV row: K and V of all heads that travel.
std::int64_t kv_row(const HeadShape& heads, DType dtype) {
  return 2 * heads.num_kv_heads * heads.head_dim * static_cast<std::int64_t>(size_of(dtype));
}

AttentionBytes ring_bytes(const AttentionPlan& plan, const HeadShape& heads) {
  const std::int64_t forward = plan.rows_sent() * kv_row(heads, heads.compute);
  return {.forward = forward,
          .backward = forward + plan.gradient_rows_sent() * kv_row(heads, DType::kF32)};
}

// Gradients go home as f32 sums; in invariant mode as exact sums, two i64 each.
AttentionBytes allgather_bytes(const AttentionPlan& plan, int rank, const HeadShape& heads,
                               bool invariant) {
  std::int64_t sent = 0, returned = 0;
  for (std::size_t peer = 0; peer < plan.gather.num_sent.size(); ++peer) {
    if (static_cast<int>(peer) == rank) continue;
    sent += plan.gather.num_sent[peer];
    returned += plan.gather.num_received[peer];
  }
  const std::int64_t forward = sent * kv_row(heads, heads.compute);
  const std::int64_t home = invariant ? 2 * kv_row(heads, DType::kI64) : kv_row(heads, DType::kF32);
  return {.forward = forward, .backward = forward + returned * home};
}

// What Ulysses ranks exchange, and the ring of their merged rows with the heads each of them has.
AttentionBytes ulysses_bytes(const AttentionPlan& plan, const ContextPlace& place,
                             const HeadShape& heads) {
  const auto compute = static_cast<std::int64_t>(size_of(heads.compute));
  const auto share = [&](int u) {
    return ulysses_heads(heads.num_heads, heads.num_kv_heads, u, place.ulysses_size);
  };
  const auto tokens = [&](int u) {
    return ulysses_share(plan.local_rows, u, place.ulysses_size).size();
  };
  const HeadShare mine = share(place.ulysses_rank);
  const std::int64_t my_q_heads = mine.q_end - mine.q_begin;
  HeadShape local = heads;
  local.num_kv_heads = static_cast<std::int64_t>(mine.kv_heads.size());
  AttentionBytes bytes = ring_bytes(plan, local);
  for (int u = 0; u < place.ulysses_size; ++u) {
    if (u == place.ulysses_rank) continue;
    const HeadShare other = share(u);
    const std::int64_t q_heads = other.q_end - other.q_begin;
    const std::int64_t out_row = my_q_heads * heads.head_dim * compute;
    bytes.spread += tokens(place.ulysses_rank) * (q_heads + 2 * other.num_distinct()) *
                    heads.head_dim * compute;
    bytes.forward += tokens(u) * out_row;
    bytes.backward += tokens(place.ulysses_rank) * q_heads * (heads.head_dim * compute + 4);
    bytes.backward += tokens(u) * (out_row + 2 * mine.num_distinct() * heads.head_dim *
                                                 (mine.shared ? 4 : compute));
  }
  bytes.forward += bytes.spread;
  return bytes;
}

}  // namespace

std::unique_ptr<Attention> make_attention(std::string_view strategy, bool invariant) {
  if (strategy == "ring" && !invariant) return std::make_unique<RingAttention>();
  if (strategy == "allgather" && invariant) return std::make_unique<InvariantAttention>();
  if (strategy == "allgather") return std::make_unique<AllgatherAttention>();
  if ((strategy == "ulysses" || strategy == "hybrid") && !invariant)
    return std::make_unique<UlyssesAttention>();
  throw Error(ExitCode::kUsage, {.what = fmt::format("there is no {}attention '{}'",
                                                     invariant ? "invariant " : "", strategy),
                                 .where = "parallel.attention",
                                 .fix = invariant ? "use allgather with parallel.invariant"
                                                  : "use ring, allgather, ulysses or hybrid"});
}

AttentionBytes attention_bytes(std::string_view strategy, const AttentionPlan& plan,
                               const ContextPlace& place, const HeadShape& heads, bool invariant) {
  if (strategy == "allgather") return allgather_bytes(plan, place.ring_rank, heads, invariant);
  if (strategy == "ulysses" || strategy == "hybrid") return ulysses_bytes(plan, place, heads);
  FARSPAN_CHECK(strategy == "ring", "attention '{}'", strategy);
  return ring_bytes(plan, heads);
}

HeadShare ulysses_heads(std::int64_t num_heads, std::int64_t num_kv_heads, int u, int size) {
  FARSPAN_CHECK(size > 0 && u >= 0 && u < size && num_heads % size == 0,
                "{} query heads for {} Ulysses ranks", num_heads, size);
  FARSPAN_CHECK(num_kv_heads > 0 && num_heads % num_kv_heads == 0, "{} query heads, {} KV heads",
                num_heads, num_kv_heads);
  const std::int64_t count = num_heads / size, group = num_heads / num_kv_heads;
  // The largest runs of query heads that lie in one group and divide this rank's heads: the kernels
  // take one KV head for each equally long run.
  const std::int64_t run = std::gcd(count, group);
  HeadShare share{
      .q_begin = u * count, .q_end = (u + 1) * count, .kv_heads = {}, .shared = run < group};
  for (std::int64_t head = share.q_begin; head < share.q_end; head += run)
    share.kv_heads.push_back(static_cast<std::int32_t>(head / group));
  return share;
}

}  // namespace farspan
