// All-gather attention on P ranks against the definition, and what it sends.
#include "parallel/allgather_attention.h"

#include <gtest/gtest.h>

#include "parallel/sharded_attention.h"

namespace farspan {
namespace {

using namespace farspan::testing;

TEST(AllgatherAttention, EqualsTheDefinitionUnderAnySharding) {
  for (const auto& [length, longest] : std::vector<std::pair<std::int64_t, std::int64_t>>{
           {1, 1}, {3, 3}, {5, 1}, {97, 97}, {128, 1000}, {131, 40}, {160, 9}}) {
    const AttentionTask task = make_task(
        {.seed = static_cast<std::uint64_t>(length), .length = length, .longest = longest});
    const TaskResult expected = definition(task);
    for (const LayoutKind kind :
         {LayoutKind::kZigzag, LayoutKind::kContiguous, LayoutKind::kStriped})
      for (const int ranks : {1, 2, 3, 4, 5, 8}) {
        const Sharded how{.strategy = "allgather", .ring = ranks, .layout = kind};
        SCOPED_TRACE(fmt::format("length {} longest {}, {}", length, longest, how.description()));
        expect_equal_results(run_sharded(task, how), expected);
      }
  }
}

// A row goes to the ranks that need it and to no other: under a window of W, contiguous shards, the
// W - 1 keys before each border, whatever the distance on the ring.
TEST(AllgatherAttention, SendsEveryNeededRowOnce) {
  const AttentionPattern window{.window = 16};
  const std::vector<std::int32_t> segments(256, 0);
  const auto layout = SequenceLayout::make(LayoutKind::kContiguous, 1, 256, 4);
  const HeadShape heads{.num_heads = 4, .num_kv_heads = 2, .head_dim = 8, .compute = DType::kBF16};
  for (const int rank : {0, 1, 2, 3}) {
    const AttentionPlan plan = plan_attention(
        {.segments = segments, .layout = layout, .pattern = window, .gather = true}, rank);
    const ContextPlace place{.ring_rank = rank, .ring_size = 4};
    const AttentionBytes bytes = attention_bytes("allgather", plan, place, heads, false);
    const std::int64_t row = 2 * 2 * 8;  // K and V, heads, dim
    const std::int64_t sent = rank < 3 ? 15 : 0, received = rank > 0 ? 15 : 0;
    EXPECT_EQ(bytes.forward, sent * row * 2) << rank;
    EXPECT_EQ(bytes.backward, sent * row * 2 + received * row * 4) << rank;
    EXPECT_EQ(bytes.spread, 0);
  }
}

}  // namespace
}  // namespace farspan
