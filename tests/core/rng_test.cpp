#include "core/rng.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <vector>

#include "core/error.h"

namespace farspan {
namespace {

using Block = std::array<std::uint32_t, 4>;

// The three vectors that the authors publish for philox4x32-10 (Random123, tests/kat_vectors).
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}),
            (Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

// Checkpoints and data order depend on these: the mapping of (seed, stream, counter) to the block
// must never change.
TEST(CounterRng, CounterStreamAndSeedEnterThePhiloxBlock) {
  const CounterRng rng(0x299f31d0a4093822u, 0x0370734413198a2eu);
  const Block expected{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1};
  EXPECT_EQ(rng.block(0x85a308d3243f6a88u), expected);
  EXPECT_EQ(rng.bits(0x85a308d3243f6a88u), 0x94fdccebd16cfe09u);
}

TEST(CounterRng, IsAPureFunction) {
  const CounterRng a(1, 2), b(1, 2);
  EXPECT_EQ(a.bits(5), b.bits(5));
  EXPECT_NE(a.bits(5), a.bits(6));
  EXPECT_NE(a.bits(5), CounterRng(2, 2).bits(5));
  EXPECT_NE(a.bits(5), CounterRng(1, 3).bits(5));
}

TEST(CounterRng, UniformFillsTheUnitInterval) {
  const CounterRng rng(7, stream_id("test"));
  constexpr int kDraws = 20000;
  double sum = 0, square = 0;
  std::vector<int> bins(10);
  for (int i = 0; i < kDraws; ++i) {
    const double u = rng.uniform(static_cast<std::uint64_t>(i));
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    sum += u;
    square += u * u;
    ++bins[static_cast<std::size_t>(u * 10)];
  }
  // Five standard errors.
  EXPECT_NEAR(sum / kDraws, 0.5, 5 * std::sqrt(1.0 / 12 / kDraws));
  EXPECT_NEAR(square / kDraws, 1.0 / 3, 0.011);
  for (int count : bins) EXPECT_NEAR(count, kDraws * 0.1, 5 * std::sqrt(kDraws * 0.09));
}

TEST(CounterRng, BelowReachesEveryValueAndNoMore) {
  const CounterRng rng(7, 1);
  std::set<std::uint64_t> seen;
  for (std::uint64_t i = 0; i < 500; ++i) {
    const std::uint64_t v = rng.below(i, 7);
    ASSERT_LT(v, 7u);
    seen.insert(v);
    ASSERT_EQ(rng.below(i, 1), 0u);
  }
  EXPECT_EQ(seen.size(), 7u);
  EXPECT_THROW(rng.below(0, 0), InternalError);
}

TEST(CounterRng, NormalHasMeanZeroAndDeviationOne) {
  const CounterRng rng(3, 9);
  constexpr int kDraws = 40000;
  double sum = 0, square = 0, fourth = 0;
  for (int i = 0; i < kDraws; ++i) {
    const double z = rng.normal(static_cast<std::uint64_t>(i));
    ASSERT_TRUE(std::isfinite(z));
    sum += z;
    square += z * z;
    fourth += z * z * z * z;
  }
  EXPECT_NEAR(sum / kDraws, 0, 5 / std::sqrt(kDraws));
  EXPECT_NEAR(square / kDraws, 1, 5 * std::sqrt(2.0 / kDraws));
  EXPECT_NEAR(fourth / kDraws, 3, 5 * std::sqrt(96.0 / kDraws));
}

TEST(StreamId, TellsPurposesAndNumbersApart) {
  std::set<std::uint64_t> ids;
  int made = 0;
  for (const char* purpose : {"data.permutation", "data.permutatioN", "weights", ""})
    for (std::uint64_t a = 0; a < 30; ++a)
      for (std::uint64_t b = 0; b < 30; ++b, ++made) ids.insert(stream_id(purpose, a, b));
  EXPECT_EQ(ids.size(), static_cast<std::size_t>(made));
  EXPECT_EQ(stream_id("weights"), stream_id("weights", 0, 0));
}

}  // namespace
}  // namespace farspan
