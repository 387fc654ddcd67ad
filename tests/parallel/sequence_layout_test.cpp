#include "parallel/sequence_layout.h"

#include <gtest/gtest.h>

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
  for (const LayoutKind kind : {LayoutKind::kContiguous, LayoutKind::kZigzag})
    for (int ranks = 1; ranks <= 9; ++ranks)
      for (const std::int64_t length : {0, 1, 2, 7, 13, 64, 101}) {
        const auto layout = SequenceLayout::make(kind, 3, length, ranks);  // CHECKs the cover
        EXPECT_EQ(layout.num_tokens(), 3 * length);
        EXPECT_LE(layout.max_local_tokens(), 3 * (length / ranks + 2));
      }
}

TEST(SequenceLayout, RefusesGapsAndOverlaps) {
  EXPECT_THROW(SequenceLayout({{{0, 4}}, {{5, 8}}}), InternalError);
  EXPECT_THROW(SequenceLayout({{{0, 4}}, {{3, 8}}}), InternalError);
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
  }
}

}  // namespace
}  // namespace farspan
