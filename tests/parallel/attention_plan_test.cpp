// The plan against its definition: every visible (query, key) pair of the global mask is computed
// by exactly one slice of one rank, on rows that have really travelled there.
#include "parallel/attention_plan.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

#include "parallel/random_documents.h"

namespace farspan {
namespace {

using Indices = std::vector<std::int64_t>;

AttentionPlan plan_of(const std::vector<std::int32_t>& segments, const SequenceLayout& layout,
                      int rank) {
  const AttentionPattern causal;
  return plan_attention(
      {.segments = segments, .positions = {}, .layout = layout, .pattern = causal}, rank);
}

Indices local_indices(const SequenceLayout& layout, int rank) {
  Indices out;
  for (const IndexRange& r : layout.ranges(rank))
    for (std::int64_t i = r.begin; i < r.end; ++i) out.push_back(i);
  return out;
}

Indices rows_of(const Indices& block, const std::vector<IndexRange>& ranges) {
  Indices out;
  for (const IndexRange& r : ranges) {
    EXPECT_LE(r.end, static_cast<std::int64_t>(block.size()));
    out.insert(out.end(), block.begin() + r.begin, block.begin() + r.end);
  }
  return out;
}

bool visible(const AttentionSlice& s, std::int64_t i, std::int64_t j) {
  const std::int64_t delta = i - j + s.diagonal;
  return s.kind == MaskKind::kFull || delta >= 0;
}

// Runs the ring on token indices instead of values and returns each pair's number of computations.
std::map<std::pair<std::int64_t, std::int64_t>, int> simulate(
    const std::vector<std::int32_t>& segments, const SequenceLayout& layout) {
  const int ranks = layout.num_ranks();
  std::vector<AttentionPlan> plans;
  for (int r = 0; r < ranks; ++r) plans.push_back(plan_of(segments, layout, r));
  std::vector<Indices> block, local;
  for (int r = 0; r < ranks; ++r) local.push_back(local_indices(layout, r));
  block = local;
  std::map<std::pair<std::int64_t, std::int64_t>, int> computed;
  std::vector<std::multiset<std::int64_t>> home(static_cast<std::size_t>(ranks));
  const std::size_t hops = plans[0].hops.size();
  for (std::size_t h = 0; h < hops; ++h) {
    for (int r = 0; r < ranks; ++r) {
      const auto& plan = plans[static_cast<std::size_t>(r)];
      EXPECT_EQ(plan.hops.size(), hops);
      const auto& hop = plan.hops[h];
      const Indices& keys = block[static_cast<std::size_t>(r)];
      EXPECT_EQ(static_cast<std::int64_t>(keys.size()), hop.kv_rows);
      double area = 0;
      for (const AttentionSlice& s : hop.slices) {
        EXPECT_GT(s.q_len, 0);
        EXPECT_GT(s.k_len, 0);
        for (std::int64_t i = 0; i < s.q_len; ++i)
          for (std::int64_t j = 0; j < s.k_len; ++j) {
            const std::int64_t q =
                local[static_cast<std::size_t>(r)][static_cast<std::size_t>(s.q_begin + i)];
            const std::int64_t k = keys[static_cast<std::size_t>(s.k_begin + j)];
            EXPECT_EQ(q - k, i - j + s.diagonal - 0) << "slice runs over consecutive indices";
            if (visible(s, i, j)) {
              ++computed[{q, k}];
              ++area;
            }
          }
        EXPECT_GT(area, 0) << "an empty slice was emitted";
      }
      // Rows that end here go home, and their owner expects exactly them.
      const int owner = (r - static_cast<int>(h) + ranks) % ranks;
      const auto& expected = plans[static_cast<std::size_t>(owner)].hops[h].returned;
      EXPECT_EQ(rows_of(keys, hop.ended),
                rows_of(local[static_cast<std::size_t>(owner)], expected));
      EXPECT_EQ(hop.num_ended + hop.num_forwarded, h == 0 ? hop.num_forwarded : hop.kv_rows);
    }
    std::vector<Indices> next(static_cast<std::size_t>(ranks));
    for (int r = 0; r < ranks; ++r)
      next[static_cast<std::size_t>((r + 1) % ranks)] = rows_of(
          block[static_cast<std::size_t>(r)], plans[static_cast<std::size_t>(r)].hops[h].forwarded);
    if (h + 1 < hops) block = next;
    for (int r = 0; h + 1 == hops && r < ranks; ++r)
      EXPECT_TRUE(next[static_cast<std::size_t>(r)].empty()) << "rows sent after the last hop";
  }
  return computed;
}

void check(const std::vector<std::int32_t>& segments, const SequenceLayout& layout) {
  const auto computed = simulate(segments, layout);
  const auto n = static_cast<std::int64_t>(segments.size());
  std::size_t expected = 0;
  for (std::int64_t q = 0; q < n; ++q)
    for (std::int64_t k = 0; k <= q; ++k) {
      if (segments[static_cast<std::size_t>(q)] != segments[static_cast<std::size_t>(k)]) continue;
      ++expected;
      const auto it = computed.find({q, k});
      ASSERT_TRUE(it != computed.end()) << "pair (" << q << ", " << k << ") is missing";
      ASSERT_EQ(it->second, 1) << "pair (" << q << ", " << k << ")";
    }
  ASSERT_EQ(computed.size(), expected) << "pairs that the mask does not have";
  double pairs = 0;
  for (int r = 0; r < layout.num_ranks(); ++r) pairs += plan_of(segments, layout, r).visible_pairs;
  ASSERT_EQ(pairs, static_cast<double>(expected));
}

TEST(AttentionPlan, EveryVisiblePairExactlyOnce) {
  for (std::uint64_t seed = 1; seed <= 120; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937_64 rng(seed);
    const int ranks = static_cast<int>(1 + rng() % 8);
    const auto length = static_cast<std::int64_t>(1 + rng() % 70);
    const auto longest = static_cast<std::int64_t>(1 + rng() % 80);
    const auto kind = rng() % 2 == 0 ? LayoutKind::kZigzag : LayoutKind::kContiguous;
    check(testing::random_segments(rng, length, longest),
          SequenceLayout::make(kind, 1, length, ranks));
    if (HasFatalFailure()) return;
  }
}

// Documents' tokens may be scattered over ranks in any way.
TEST(AttentionPlan, AnyAssignmentOfRanges) {
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937_64 rng(seed);
    const int ranks = static_cast<int>(2 + rng() % 5);
    std::vector<std::vector<IndexRange>> ranges(static_cast<std::size_t>(ranks));
    std::int64_t next = 0;
    while (next < 60) {
      const auto size = static_cast<std::int64_t>(1 + rng() % 9);
      ranges[rng() % static_cast<std::uint64_t>(ranks)].push_back({next, next + size});
      next += size;
    }
    check(testing::random_segments(rng, next, 40), SequenceLayout(ranges));
    if (HasFatalFailure()) return;
  }
}

TEST(AttentionPlan, ShortDocumentsStayAtHome) {
  std::vector<std::int32_t> segments(64);
  for (std::size_t t = 0; t < segments.size(); ++t) segments[t] = static_cast<std::int32_t>(t / 8);
  const auto layout = SequenceLayout::make(LayoutKind::kContiguous, 1, 64, 4);
  for (int r = 0; r < 4; ++r) {
    const AttentionPlan plan = plan_of(segments, layout, r);
    EXPECT_EQ(plan.hops.size(), 1u);
    EXPECT_EQ(plan.rows_sent(), 0);
  }
}

// One causal document, contiguous: rank r's rows travel to the last rank and no further.
TEST(AttentionPlan, ContiguousRowsStopAtTheLastRank) {
  const std::vector<std::int32_t> segments(80, 0);
  const auto layout = SequenceLayout::make(LayoutKind::kContiguous, 1, 80, 4);
  std::int64_t sent = 0;
  for (int r = 0; r < 4; ++r) sent += plan_of(segments, layout, r).rows_sent();
  EXPECT_EQ(sent, 20 * (3 + 2 + 1));
}

}  // namespace
}  // namespace farspan
