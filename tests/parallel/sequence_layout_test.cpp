#include "parallel/sequence_layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "parallel/random_documents.h"

namespace farspan {
namespace {

TEST(SequenceLayout, ZigzagPairsEarlyAndLateRuns) {
  const auto layout = SequenceLayout::make(LayoutKind::kZigzag, 1, 16, 2);
  EXPECT_EQ(layout.ranges(0), (std::vector<IndexRange>{{0, 4}, {12, 16}}));
  EXPECT_EQ(layout.ranges(1), (std::vector<IndexRange>{{4, 12}}));  // adjacent runs join
}

TEST(SequenceLayout, EverySequenceIsCutAcrossAllRanks) {
  const auto layout = SequenceLayout::make(LayoutKind::kContiguous, 2, 8, 2);
  EXPECT_EQ(layout.ranges(0), (std::vector<IndexRange>{{0, 4}, {8, 12}}));
  EXPECT_EQ(layout.ranges(1), (std::vector<IndexRange>{{4, 8}, {12, 16}}));
}

TEST(SequenceLayout, AnyLengthAndAnyNumberOfRanks) {
  for (const LayoutKind kind : {LayoutKind::kContiguous, LayoutKind::kZigzag, LayoutKind::kStriped})
    for (int ranks = 1; ranks <= 9; ++ranks)
      for (const std::int64_t length : {0, 1, 2, 7, 13, 64, 101}) {
        const auto layout = SequenceLayout::make(kind, 3, length, ranks);  // CHECKs the cover
        EXPECT_EQ(layout.num_tokens(), 3 * length);
        EXPECT_LE(layout.max_local_tokens(), 3 * (length / ranks + 2));
      }
}

std::vector<std::int64_t> indices(const SequenceLayout& layout, int rank) {
  std::vector<std::int64_t> global(static_cast<std::size_t>(layout.num_tokens()));
  std::iota(global.begin(), global.end(), 0);
  return layout.take<std::int64_t>(global, rank);
}

TEST(SequenceLayout, StripedDealsOutTokensOfEachSequence) {
  const auto layout = SequenceLayout::make(LayoutKind::kStriped, 2, 5, 3);
  EXPECT_EQ(layout.stride(), 3);
  EXPECT_EQ(indices(layout, 0), (std::vector<std::int64_t>{0, 3, 5, 8}));
  EXPECT_EQ(indices(layout, 1), (std::vector<std::int64_t>{1, 4, 6, 9}));
  EXPECT_EQ(indices(layout, 2), (std::vector<std::int64_t>{2, 7}));
  EXPECT_EQ(layout.ranges(0), (std::vector<IndexRange>{{0, 4, 3}, {5, 9, 3}}));
}

// Also where every run is a single token, which alone does not tell.
TEST(SequenceLayout, StrideDoesNotDependOnLength) {
  EXPECT_EQ(SequenceLayout::make(LayoutKind::kStriped, 1, 2, 4).stride(), 4);
  EXPECT_EQ(SequenceLayout::make(LayoutKind::kContiguous, 1, 2, 4).refined(6).stride(), 6);
}

TEST(SequenceLayout, BlocksAreNeverCut) {
  for (const LayoutKind kind : {LayoutKind::kContiguous, LayoutKind::kZigzag, LayoutKind::kStriped})
    for (int ranks = 1; ranks <= 5; ++ranks)
      for (const std::int64_t length : {1, 8, 31, 64, 67}) {
        const auto layout = SequenceLayout::make(kind, 2, length, ranks, 8);
        EXPECT_EQ(layout.stride(), 1);
        for (int r = 0; r < ranks; ++r)
          for (const IndexRange& run : layout.ranges(r)) {
            EXPECT_EQ(run.begin % length % 8, 0) << "length " << length << ", rank " << r;
            const std::int64_t end = run.end % length;
            EXPECT_EQ(end % 8, 0) << "length " << length << ", rank " << r;
          }
      }
  const auto striped = SequenceLayout::make(LayoutKind::kStriped, 1, 40, 2, 8);
  EXPECT_EQ(striped.ranges(0), (std::vector<IndexRange>{{0, 8}, {16, 24}, {32, 40}}));
}

TEST(SequenceLayout, RefinedKeepsTokensAndSplitsByResidue) {
  const SequenceLayout layout({{{0, 7}, {12, 13}}, {{7, 12}}});
  const SequenceLayout fine = layout.refined(3);
  EXPECT_EQ(fine.stride(), 3);
  EXPECT_EQ(indices(fine, 0), (std::vector<std::int64_t>{0, 3, 6, 1, 4, 2, 5, 12}));
  EXPECT_EQ(indices(fine, 1), (std::vector<std::int64_t>{7, 10, 8, 11, 9}));
  const auto striped = SequenceLayout::make(LayoutKind::kStriped, 1, 23, 3).refined(2);
  EXPECT_EQ(striped.stride(), 6);
  EXPECT_EQ(indices(striped, 1), (std::vector<std::int64_t>{1, 7, 13, 19, 4, 10, 16, 22}));
}

TEST(SequenceLayout, FittedRefinesByTheLeast) {
  const auto striped = SequenceLayout::make(LayoutKind::kStriped, 1, 64, 4);
  EXPECT_EQ(striped.fitted(2).stride(), 4);
  EXPECT_EQ(striped.fitted(6).stride(), 12);
  EXPECT_EQ(SequenceLayout::make(LayoutKind::kZigzag, 1, 64, 4).fitted(6).stride(), 6);
}

TEST(SequenceLayout, RunsInAnyOrder) {
  const SequenceLayout layout({{{6, 9}, {0, 2}}, {{2, 6}}});
  EXPECT_EQ(indices(layout, 0), (std::vector<std::int64_t>{6, 7, 8, 0, 1}));
  // Single tokens fit any stride; a written end beyond the last token is cut back.
  const SequenceLayout mixed({{{0, 5, 2}, {3, 4}}, {{1, 2}, {5, 6}, {7, 8, 9}}, {{6, 7}}});
  EXPECT_EQ(mixed.stride(), 2);
  EXPECT_EQ(indices(mixed, 0), (std::vector<std::int64_t>{0, 2, 4, 3}));
  EXPECT_EQ(mixed.ranges(1).back(), (IndexRange{7, 8, 1}));
}

TEST(SequenceLayout, RefusesGapsAndOverlaps) {
  using Ranges = std::vector<std::vector<IndexRange>>;
  const std::vector<Ranges> wrong = {{{{0, 4}}, {{5, 8}}},                // gap
                                     {{{0, 4}}, {{3, 8}}},                // overlap
                                     {{{1, 4}}},                          // does not begin at 0
                                     {{{0, 4}}, {{0, 4}}},                // twice
                                     {{{0, 8, 2}}, {{1, 8, 3}}},          // two strides
                                     {{{0, 8, 2}}, {{3, 8, 2}}},          // 1 is missing
                                     {{{0, 8, 2}}, {{1, 10, 2}}},         // 8 is missing, 9 is not
                                     {{{0, 8, 2}}, {{4, 5}, {1, 8, 2}}},  // 4 twice
                                     {{{0, 8, 3}}, {{1, 8, 3}}},  // a residue without any run
                                     {{{0, 0}}},                  // an empty run
                                     {{{0, 4, 0}}},               // no stride
                                     {}};                         // no ranks
  for (std::size_t i = 0; i < wrong.size(); ++i)
    EXPECT_THROW(SequenceLayout{wrong[i]}, InternalError) << "case " << i;
  EXPECT_THROW(SequenceLayout::make(LayoutKind::kBalanced, 1, 8, 2), InternalError);
}

TEST(SequenceLayout, AnyAssignmentIsTakenAndAnyLossSeen) {
  for (std::uint64_t seed = 1; seed <= 50; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937_64 rng(seed);
    const auto length = static_cast<std::int64_t>(2 + rng() % 60);
    auto ranges = testing::random_ranges(rng, length, static_cast<int>(1 + rng() % 6));
    const SequenceLayout layout(ranges);
    std::vector<std::int64_t> all;
    for (int r = 0; r < layout.num_ranks(); ++r) {
      const auto mine = indices(layout, r);
      EXPECT_EQ(static_cast<std::int64_t>(mine.size()), layout.local_tokens(r));
      all.insert(all.end(), mine.begin(), mine.end());
    }
    std::sort(all.begin(), all.end());
    std::vector<std::int64_t> expected(static_cast<std::size_t>(length));
    std::iota(expected.begin(), expected.end(), 0);
    EXPECT_EQ(all, expected);
    // One run held twice.
    auto twice = ranges;
    twice[0].push_back(ranges.back().empty() ? IndexRange{0, 1} : ranges.back()[0]);
    EXPECT_THROW(SequenceLayout{twice}, InternalError);
  }
}

TEST(SequenceLayout, TakeKeepsLocalOrder) {
  const auto layout = SequenceLayout::make(LayoutKind::kZigzag, 1, 8, 2);
  const std::vector<std::int32_t> global{0, 1, 2, 3, 4, 5, 6, 7};
  EXPECT_EQ(layout.take<std::int32_t>(global, 0), (std::vector<std::int32_t>{0, 1, 6, 7}));
}

TEST(SequenceLayout, UnknownLayoutIsNamed) {
  try {
    layout_kind("spiral");
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("spiral"), std::string::npos);
    EXPECT_EQ(e.code(), ExitCode::kUsage);
    EXPECT_NE(e.text().fix.find("balanced"), std::string::npos);
  }
}

}  // namespace
}  // namespace farspan
