// Ring attention on P ranks against the definition.
#include "parallel/ring_attention.h"

#include <gtest/gtest.h>

#include "parallel/sharded_attention.h"

namespace farspan {
namespace {

using namespace farspan::testing;

TEST(RingAttention, EqualsTheDefinitionUnderAnySharding) {
  for (const auto& [length, longest] : std::vector<std::pair<std::int64_t, std::int64_t>>{
           {1, 1}, {3, 3}, {3, 2}, {5, 1}, {97, 97}, {128, 1000}, {131, 40}, {160, 9}}) {
    const AttentionTask task = make_task(
        {.seed = static_cast<std::uint64_t>(length), .length = length, .longest = longest});
    const TaskResult expected = definition(task);
    for (const LayoutKind kind :
         {LayoutKind::kZigzag, LayoutKind::kContiguous, LayoutKind::kStriped})
      for (const int ranks : {1, 2, 3, 4, 5, 8}) {
        const Sharded how{.strategy = "ring", .ring = ranks, .layout = kind};
        SCOPED_TRACE(fmt::format("length {} longest {}, {}", length, longest, how.description()));
        expect_equal_results(run_sharded(task, how), expected);
      }
  }
}

// A window is a halo exchange: what a rank sends does not grow with the sequence.
TEST(RingAttention, AWindowMovesItsBordersOnly) {
  const AttentionPattern window{.window = 16};
  std::int64_t rows[2];
  for (const int i : {0, 1}) {
    const std::int64_t length = i == 0 ? 256 : 2048;
    const std::vector<std::int32_t> segments(static_cast<std::size_t>(length), 0);
    const auto layout = SequenceLayout::make(LayoutKind::kContiguous, 1, length, 4);
    rows[i] =
        plan_attention({.segments = segments, .layout = layout, .pattern = window}, 0).rows_sent();
  }
  EXPECT_EQ(rows[0], 15);
  EXPECT_EQ(rows[1], 15);
}

}  // namespace
}  // namespace farspan
