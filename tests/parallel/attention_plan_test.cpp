// The plan against its definition: every visible (query, key, head) of the mask's formula is
// computed exactly as often as it counts, on rows that have really travelled there.
#include "parallel/attention_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "parallel/mask_formula.h"
#include "parallel/plan_simulation.h"
#include "parallel/random_documents.h"

namespace farspan {
namespace {

using testing::Case;
using testing::check_gather;
using testing::check_ring;
using testing::plans_of;
using testing::sample_patterns;

constexpr LayoutKind kPlainKinds[] = {LayoutKind::kContiguous, LayoutKind::kZigzag,
                                      LayoutKind::kStriped};

SequenceLayout random_layout(std::mt19937_64& rng, std::int64_t length, int ranks) {
  switch (rng() % 5) {
    case 0:
      return SequenceLayout(testing::random_ranges(rng, length, ranks));
    case 1:
      return SequenceLayout(
          testing::random_ranges(rng, length, ranks, static_cast<std::int64_t>(2 + rng() % 3)));
    default:
      return SequenceLayout::make(kPlainKinds[rng() % 3], 1, length, ranks, rng() % 4 == 0 ? 4 : 1);
  }
}

void check_random_case(std::uint64_t seed, const AttentionPattern& pattern) {
  SCOPED_TRACE(pattern.description() + ", seed " + std::to_string(seed));
  std::mt19937_64 rng(seed);
  constexpr std::int64_t kLengths[] = {1, 2, 3, 7, 13, 31, 48, 61};
  const std::int64_t length = kLengths[rng() % 8];
  const int ranks = static_cast<int>(1 + rng() % 8);
  Case c{
      .segments = testing::random_segments(rng, length, static_cast<std::int64_t>(1 + rng() % 80)),
      .layout = random_layout(rng, length, ranks).fitted(pattern.row_stride()),
      .pattern = pattern,
      .num_kv_heads = 4};
  if (rng() % 2 == 0)
    c.positions = testing::random_positions(rng, c.segments, static_cast<std::int32_t>(rng() % 50),
                                            rng() % 2 == 0);
  if (rng() % 3 == 0)  // a share of the heads, some held twice
    for (std::int32_t h = 0; h < 4; ++h) c.local_heads.insert(c.local_heads.end(), rng() % 3, h);
  check_ring(c);
  check_gather(c);
}

TEST(AttentionPlan, EveryVisiblePairExactlyOnce) {
  for (const AttentionPattern& pattern : sample_patterns())
    for (std::uint64_t seed = 1; seed <= 60; ++seed) {
      check_random_case(seed, pattern);
      if (HasFatalFailure()) return;
    }
}

// Long documents and few ranks: slices with both borders inside.
TEST(AttentionPlan, WindowsInsideLongPieces) {
  for (const std::int64_t window : {1, 2, 7, 30, 64, 100})
    for (const std::int64_t sinks : {0, 5})
      for (const LayoutKind kind : kPlainKinds) {
        const Case c{.segments = std::vector<std::int32_t>(150, 3),
                     .layout = SequenceLayout::make(kind, 1, 150, 2),
                     .pattern = {.window = window, .sinks = sinks}};
        SCOPED_TRACE(c.pattern.description());
        check_ring(c);
        check_gather(c);
        if (HasFatalFailure()) return;
      }
}

TEST(AttentionPlan, SeveralSequences) {
  for (const LayoutKind kind : kPlainKinds)
    for (const AttentionPattern& pattern : sample_patterns()) {
      std::vector<std::int32_t> segments(3 * 25);
      for (std::size_t i = 0; i < segments.size(); ++i)
        segments[i] = static_cast<std::int32_t>(i / 25);
      const Case c{.segments = segments,
                   .layout = SequenceLayout::make(kind, 3, 25, 3).fitted(pattern.row_stride()),
                   .pattern = pattern,
                   .num_kv_heads = 4};
      check_ring(c);
      check_gather(c);
      if (HasFatalFailure()) return;
    }
}

TEST(AttentionPlan, IdleRanks) {
  // Ranks 1 and 3 hold nothing at all; rank 0's rows pass over them.
  const Case c{.segments = std::vector<std::int32_t>(20, 0),
               .layout = SequenceLayout({{{0, 8}}, {}, {{8, 20}}, {}})};
  check_ring(c);
  check_gather(c);
  const auto plans = plans_of(c);
  EXPECT_EQ(plans[1].local_rows, 0);
  EXPECT_EQ(plans[1].visible_pairs, 0);
  EXPECT_EQ(plans[1].hops[1].num_forwarded, 8) << "on to rank 2";
  EXPECT_EQ(plans[3].rows_sent(), 0);
}

TEST(AttentionPlan, NoTokensAtAll) {
  for (const LayoutKind kind : kPlainKinds) {
    const Case c{.layout = SequenceLayout::make(kind, 1, 0, 3)};
    check_ring(c);
    check_gather(c);
    EXPECT_EQ(plans_of(c)[0].hops.size(), 1u);
  }
}

TEST(AttentionPlan, ShortDocumentsStayAtHome) {
  std::vector<std::int32_t> segments(64);
  for (std::size_t t = 0; t < segments.size(); ++t) segments[t] = static_cast<std::int32_t>(t / 8);
  const Case c{.segments = segments,
               .layout = SequenceLayout::make(LayoutKind::kContiguous, 1, 64, 4)};
  for (const AttentionPlan& plan : plans_of(c)) {
    EXPECT_EQ(plan.hops.size(), 1u);
    EXPECT_EQ(plan.rows_sent(), 0);
    EXPECT_EQ(plan.gather.rows, 0);
  }
}

// One causal document, contiguous: rank r's rows travel to the last rank and no further.
TEST(AttentionPlan, ContiguousRowsStopAtTheLastRank) {
  const Case c{.segments = std::vector<std::int32_t>(80, 0),
               .layout = SequenceLayout::make(LayoutKind::kContiguous, 1, 80, 4)};
  std::int64_t sent = 0;
  for (const AttentionPlan& plan : plans_of(c)) sent += plan.rows_sent();
  EXPECT_EQ(sent, 20 * (3 + 2 + 1));
}

// The published count of dense ring attention, S (P - 1) rows, bounds the zigzag plan.
TEST(AttentionPlan, ZigzagRowsAgainstTheDenseFormula) {
  for (const int ranks : {2, 4, 8}) {
    const Case c{.segments = std::vector<std::int32_t>(8192, 0),
                 .layout = SequenceLayout::make(LayoutKind::kZigzag, 1, 8192, ranks)};
    std::int64_t sent = 0, returned = 0;
    for (const AttentionPlan& plan : plans_of(c)) {
      sent += plan.rows_sent();
      returned += plan.gradient_rows_sent();
    }
    const std::int64_t dense = 8192 * (ranks - 1);
    EXPECT_LE(sent, dense);
    // Only the very last run of the sequence is needed by nobody else.
    EXPECT_GE(static_cast<double>(sent), static_cast<double>(dense) * (1 - 0.6 / ranks));
    EXPECT_EQ(returned, sent) << "a row and hop: one forwarded sum or one return";
  }
}

// A window is a halo: each border sends the window - 1 rows before it, one hop, whatever the
// length; the sinks go on to the last rank.
TEST(AttentionPlan, WindowMovesItsHaloOnly) {
  for (const std::int64_t length : {800, 8000}) {
    Case c{.segments = std::vector<std::int32_t>(static_cast<std::size_t>(length), 0),
           .layout = SequenceLayout::make(LayoutKind::kContiguous, 1, length, 8),
           .pattern = {.window = 17}};
    auto plans = plans_of(c);
    for (std::size_t r = 0; r < 8; ++r) {
      EXPECT_EQ(plans[r].hops.size(), 2u);
      EXPECT_EQ(plans[r].rows_sent(), r < 7 ? 16 : 0);
      EXPECT_EQ(plans[r].gather.rows, r > 0 ? 16 : 0);
      EXPECT_EQ(plans[r].hops[1].slices.size(), r > 0 ? 1u : 0u);
    }
    EXPECT_EQ(plans[3].hops[0].forwarded, (std::vector<IndexRange>{{length / 8 - 16, length / 8}}));
    EXPECT_EQ(plans[4].hops[1].slices[0], (AttentionSlice{.q_begin = 0,
                                                          .q_len = 16,
                                                          .k_begin = 0,
                                                          .k_len = 16,
                                                          .kind = MaskKind::kInverseCausal,
                                                          .diagonal = 16,
                                                          .window = 17}));
    c.pattern.sinks = 4;
    plans = plans_of(c);
    EXPECT_EQ(plans[0].rows_sent(), 16 + 4);
    for (std::size_t r = 1; r < 7; ++r) EXPECT_EQ(plans[r].rows_sent(), 16 + 4);
    EXPECT_EQ(plans[7].rows_sent(), 0);
    EXPECT_EQ(plans[7].gather.rows, 16 + 4);
  }
}

// Zigzag has two borders per neighbour pair, one of them against the ring's direction.
TEST(AttentionPlan, ZigzagWindowGathersItsHalos) {
  const Case c{.segments = std::vector<std::int32_t>(800, 0),
               .layout = SequenceLayout::make(LayoutKind::kZigzag, 1, 800, 4),
               .pattern = {.window = 17}};
  const auto plans = plans_of(c);
  EXPECT_EQ(plans[0].gather.rows, 16);  // run 7 from run 6; run 0 has nothing before it
  EXPECT_EQ(plans[1].gather.rows, 32);
  EXPECT_EQ(plans[3].gather.rows, 16);  // run 3 from run 2; run 4 follows run 3
}

TEST(AttentionPlan, KindsAreTheLeastThatIsTrue) {
  // 40 tokens on two ranks, 20 each; hop 1 of rank 1 sees the keys of rank 0.
  Case c{.segments = std::vector<std::int32_t>(40, 0),
         .layout = SequenceLayout::make(LayoutKind::kContiguous, 1, 40, 2)};
  const auto kinds = [&](std::size_t hop) {
    std::vector<MaskKind> out;
    const auto plans = plans_of(c);
    for (const AttentionSlice& s : plans[1].hops[hop].slices) out.push_back(s.kind);
    return out;
  };
  using Kinds = std::vector<MaskKind>;
  EXPECT_EQ(kinds(0), Kinds{MaskKind::kCausal});
  EXPECT_EQ(kinds(1), Kinds{MaskKind::kFull});
  c.pattern.window = 40;
  EXPECT_EQ(kinds(0), Kinds{MaskKind::kCausal}) << "a window wider than the piece cuts nothing";
  EXPECT_EQ(kinds(1), Kinds{MaskKind::kFull});
  c.pattern.window = 39;
  EXPECT_EQ(kinds(1), Kinds{MaskKind::kInverseCausal}) << "0 is hidden from 39";
  c.pattern.window = 20;
  EXPECT_EQ(kinds(0), Kinds{MaskKind::kCausal});
  c.pattern.window = 19;
  EXPECT_EQ(kinds(0), Kinds{MaskKind::kBand});
  c.pattern = {.causal = false};
  EXPECT_EQ(kinds(0), Kinds{MaskKind::kFull});
}

// Striped ranks: the distance of two rows is not a multiple of the stride, and rounds the right
// way.
TEST(AttentionPlan, StripedDiagonals) {
  const Case c{.segments = std::vector<std::int32_t>(32, 0),
               .layout = SequenceLayout::make(LayoutKind::kStriped, 1, 32, 4)};
  const auto plans = plans_of(c);
  EXPECT_EQ(plans[0].position_stride, 4);
  // Rank 1 holds 1 5 9 ..., rank 0 holds 0 4 8 ...: row i of rank 1 sees rows 0 .. i of rank 0.
  EXPECT_EQ(plans[1].hops[1].slices[0].diagonal, 0);
  EXPECT_EQ(plans[1].hops[1].slices[0].q_len, 8);
  // Rank 0 sees of rank 3 (3 7 11 ...) the rows before its own.
  const AttentionSlice s = plans[0].hops[1].slices[0];
  EXPECT_EQ(s.kind, MaskKind::kCausal);
  EXPECT_EQ(s.q_begin, 1);
  EXPECT_EQ(s.q_len, 7);
  EXPECT_EQ(s.k_len, 7);
  EXPECT_EQ(s.diagonal, 0);
}

// Without positions nothing is cut for them, and nothing is claimed about them.
TEST(AttentionPlan, PositionsCutPiecesOnlyWhenGiven) {
  Case c{.segments = std::vector<std::int32_t>(40, 0),
         .layout = SequenceLayout::make(LayoutKind::kContiguous, 1, 40, 1)};
  EXPECT_EQ(plans_of(c)[0].hops[0].slices.size(), 1u);
  c.positions.resize(40);
  for (std::size_t i = 0; i < 40; ++i)
    c.positions[i] = static_cast<std::int32_t>(i < 15 ? i : i + 1000);  // PoSE's jump
  const auto slices = plans_of(c)[0].hops[0].slices;
  ASSERT_EQ(slices.size(), 3u);  // before, between, after
  EXPECT_EQ(slices[0].position_diagonal, 0);
  EXPECT_EQ(slices[1].position_diagonal, 1015);
  EXPECT_EQ(slices[2].position_diagonal, 0);
  // Positions that restart at document borders cut nothing that is not cut anyway.
  for (std::size_t i = 0; i < 40; ++i) {
    c.segments[i] = i < 15 ? 0 : 1;
    c.positions[i] = static_cast<std::int32_t>(i < 15 ? i : i - 15);
  }
  EXPECT_EQ(plans_of(c)[0].hops[0].slices.size(), 2u);
}

TEST(AttentionPlan, RunsThatContinueOneAnotherAreOnePiece) {
  const Case c{.segments = std::vector<std::int32_t>(30, 0),
               .layout = SequenceLayout({{{0, 5}, {5, 9}, {9, 20}}, {{20, 30}}})};
  const auto plans = plans_of(c);
  EXPECT_EQ(plans[0].hops[0].slices.size(), 1u);
  EXPECT_EQ(plans[1].hops[1].slices.size(), 1u);
}

// plan_attention leaves out documents that lie whole on other ranks; the planner does not.
TEST(AttentionPlan, PlannerGivesTheSamePlans) {
  for (const std::int64_t longest : {1, 4, 40, 90}) {
    std::mt19937_64 rng(static_cast<std::uint64_t>(longest));
    for (const LayoutKind kind : kPlainKinds) {
      const Case c{.segments = testing::random_segments(rng, 90, longest),
                   .layout = SequenceLayout::make(kind, 1, 90, 5),
                   .pattern = {.window = 12, .sinks = 2}};
      SCOPED_TRACE("longest document " + std::to_string(longest));
      PlanRequest request = testing::request_of(c);
      request.gather = true;
      const AttentionPlanner planner(request);
      EXPECT_EQ(planner.num_ranks(), 5);
      for (int r = 0; r < 5; ++r) {
        const AttentionPlan a = planner.plan(r), b = plan_attention(request, r);
        ASSERT_EQ(a.hops.size(), b.hops.size());
        for (std::size_t h = 0; h < a.hops.size(); ++h) {
          EXPECT_EQ(a.hops[h].slices, b.hops[h].slices);
          EXPECT_EQ(a.hops[h].kv_rows, b.hops[h].kv_rows);
          EXPECT_EQ(a.hops[h].forwarded, b.hops[h].forwarded);
          EXPECT_EQ(a.hops[h].returned, b.hops[h].returned);
        }
        EXPECT_EQ(a.gather.slices, b.gather.slices);
        EXPECT_EQ(a.gather.sent, b.gather.sent);
        EXPECT_EQ(a.gather.num_received, b.gather.num_received);
        EXPECT_EQ(a.local_rows, b.local_rows);
        EXPECT_DOUBLE_EQ(a.visible_pairs, b.visible_pairs);
      }
    }
  }
}

TEST(AttentionPlan, RefusesWhatItCannotPlan) {
  Case c{.segments = std::vector<std::int32_t>(8, 0),
         .layout = SequenceLayout::make(LayoutKind::kContiguous, 1, 8, 2)};
  EXPECT_THROW(plan_attention(testing::request_of(c), 2), InternalError);
  c.positions = {1, 2};
  EXPECT_THROW(plans_of(c), InternalError);
  c.positions.clear();
  c.local_heads = {1};
  EXPECT_THROW(plans_of(c), InternalError) << "the model has head 0 only";
  c.local_heads.clear();
  c.pattern = {.sparse = SparseKind::kDilated, .branches = {{4, 2}}};
  EXPECT_THROW(plans_of(c), InternalError) << "rows must step by 2";
  c.layout = c.layout.fitted(2);
  EXPECT_NO_THROW(plans_of(c));
  c.segments.pop_back();
  EXPECT_THROW(plans_of(c), InternalError);
}

// ---- blocks ---------------------------------------------------------------------------------

// A slice by what it shows of the sequence, whoever computes it.
struct GlobalSlice {
  std::int64_t q, q_len, k, k_len, diagonal, window;
  MaskKind kind;
  HeadRange heads;
  auto key() const {
    return std::tuple(q, q_len, k, k_len, diagonal, window, kind, heads.begin, heads.end);
  }
  bool operator<(const GlobalSlice& o) const { return key() < o.key(); }
  bool operator==(const GlobalSlice& o) const { return key() == o.key(); }
};

// Each query block's slices, in order.
std::map<std::int64_t, std::vector<GlobalSlice>> by_query_block(const Case& c) {
  std::map<std::int64_t, std::vector<GlobalSlice>> out;
  const auto plans = plans_of(c);
  const auto local = testing::all_indices(c.layout);
  for (std::size_t r = 0; r < plans.size(); ++r) {
    const auto block = testing::gathered_rows(plans, local, r);
    std::int64_t last_block = -1;
    for (const AttentionSlice& s : plans[r].gather.slices) {
      const auto at = [](const std::vector<std::int64_t>& rows, std::int64_t i) {
        return rows[static_cast<std::size_t>(i)];
      };
      const auto block_of = [&](std::int64_t i) {
        return i / c.sequence_length * 1000 + i % c.sequence_length / c.block;
      };
      const std::int64_t q = at(local[r], s.q_begin), k = at(block, s.k_begin);
      EXPECT_EQ(block_of(q), block_of(at(local[r], s.q_begin + s.q_len - 1)));
      EXPECT_EQ(block_of(k), block_of(at(block, s.k_begin + s.k_len - 1)));
      EXPECT_GE(block_of(q), last_block) << "query blocks ascend";
      last_block = block_of(q);
      auto& of_block = out[last_block];
      EXPECT_TRUE(of_block.empty() || of_block.back().k <= k) << "keys ascend";
      of_block.push_back({q, s.q_len, k, s.k_len, s.diagonal, s.window, s.kind, s.kv_heads});
    }
  }
  return out;
}

TEST(AttentionPlanBlocks, TheSameSlicesForAnyNumberOfRanksAndAnyLayout) {
  for (const AttentionPattern& pattern : sample_patterns()) {
    SCOPED_TRACE(pattern.description());
    std::mt19937_64 rng(11);
    std::vector<std::int32_t> segments = testing::random_segments(rng, 45, 30);
    for (const std::int32_t s : testing::random_segments(rng, 45, 30)) segments.push_back(100 + s);
    const auto one = SequenceLayout::make(LayoutKind::kContiguous, 2, 45, 1, 8);
    Case c{.segments = segments,
           .layout = one.fitted(pattern.row_stride()),
           .pattern = pattern,
           .num_kv_heads = 2,
           .block = 8,
           .sequence_length = 45};
    const auto expected = by_query_block(c);
    check_gather(c);
    for (const LayoutKind kind : kPlainKinds)
      for (const int ranks : {2, 3, 4, 7}) {
        c.layout = SequenceLayout::make(kind, 2, 45, ranks, 8).fitted(pattern.row_stride());
        EXPECT_TRUE(by_query_block(c) == expected) << ranks << " ranks, layout " << int(kind);
        check_gather(c);
        check_ring(c);
        if (HasFatalFailure()) return;
      }
    // Block by block, runs of neighbours not joined, in any order.
    std::vector<std::vector<IndexRange>> ranges(3);
    for (std::int64_t b = 0; b < 12; ++b) {
      const std::int64_t begin = b / 6 * 45 + b % 6 * 8;
      ranges[b < 4 ? 0 : rng() % 3].push_back({begin, begin + (b % 6 == 5 ? 5 : 8)});
    }
    std::shuffle(ranges[2].begin(), ranges[2].end(), rng);
    c.layout = SequenceLayout(ranges).fitted(pattern.row_stride());
    EXPECT_TRUE(by_query_block(c) == expected);
    check_gather(c);
    if (HasFatalFailure()) return;
  }
}

TEST(AttentionPlanBlocks, LayoutsThatCutBlocksAreRefused) {
  const Case c{.segments = std::vector<std::int32_t>(45, 0),
               .layout = SequenceLayout::make(LayoutKind::kContiguous, 1, 45, 2),
               .block = 8,
               .sequence_length = 45};
  EXPECT_THROW(plans_of(c), InternalError);
}

}  // namespace
}  // namespace farspan
