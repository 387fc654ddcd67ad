#include "data/positions.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <map>
#include <numeric>
#include <random>
#include <set>

namespace farspan {
namespace {

PositionOptions pose(std::int64_t original, std::int64_t target, std::int64_t chunks = 2) {
  return {.sampler = PositionSampler::kPose,
          .original_context = original,
          .target_context = target,
          .chunks = chunks};
}

std::int64_t tokens_of(const std::vector<PositionRun>& runs) {
  return std::accumulate(runs.begin(), runs.end(), std::int64_t{0},
                         [](std::int64_t sum, const PositionRun& r) { return sum + r.count; });
}

// Sum of (seen - expected)^2 / expected over equally likely outcomes, as deviations from its mean
// (degrees of freedom k, deviation sqrt(2 k)).
double chi_square_deviations(const std::map<std::int64_t, std::int64_t>& seen,
                             std::int64_t outcomes, std::int64_t draws) {
  const double expected = static_cast<double>(draws) / static_cast<double>(outcomes);
  double chi = expected * static_cast<double>(outcomes - static_cast<std::int64_t>(seen.size()));
  for (const auto& [value, count] : seen)
    chi += (static_cast<double>(count) - expected) * (static_cast<double>(count) - expected) /
           expected;
  const auto freedom = static_cast<double>(outcomes - 1);
  return (chi - freedom) / std::sqrt(2 * freedom);
}

TEST(Positions, Sequential) {
  EXPECT_EQ(draw_positions({}, {}, 5), (std::vector<PositionRun>{{0, 5}}));
  EXPECT_TRUE(draw_positions({}, {}, 0).empty());
}

// The published two-chunk draw, l0 and u uniform over all their values and independent.
TEST(Positions, PoseDrawsAsPublished) {
  const std::int64_t n = 15, target = 40, draws = 60000;
  std::map<std::int64_t, std::int64_t> first, jump, joint;
  for (std::uint64_t i = 0; i < draws; ++i) {
    const auto runs = draw_positions(pose(n, target), {.seed = 7, .sample = i}, n);
    ASSERT_EQ(tokens_of(runs), n);
    ASSERT_EQ(runs.front().first, 0);
    if (runs.size() == 1) {  // u = 0: the border does not show
      ++jump[0];
      continue;
    }
    ASSERT_EQ(runs.size(), 2u);
    const std::int64_t l0 = runs[0].count, u = runs[1].first - l0;
    ASSERT_GE(l0, 1);
    ASSERT_LE(l0, (n + 1) / 2);
    ASSERT_LE(runs[1].first + runs[1].count, target);
    ++first[l0];
    ++jump[u];
    ++joint[l0 * 100 + u];
  }
  const std::int64_t jumped = draws - jump[0];
  EXPECT_LT(std::abs(chi_square_deviations(jump, target - n + 1, draws)), 4);
  EXPECT_LT(std::abs(chi_square_deviations(first, (n + 1) / 2, jumped)), 4);
  EXPECT_LT(std::abs(chi_square_deviations(joint, (n + 1) / 2 * (target - n), jumped)), 4);
}

// 14.3% of examples cover a middle distance at 2k -> 16k; the share falls to 0 over the last L_c.
TEST(Positions, CoverageOfDistances) {
  const std::int64_t draws = 20000;
  const auto share = [&](PositionOptions options, std::int64_t distance) {
    std::int64_t covered = 0;
    for (std::uint64_t i = 0; i < draws; ++i) {
      const auto runs = draw_positions(options, {.seed = 3, .sample = i}, 2048);
      if (runs.size() < 2) continue;
      const std::int64_t low = runs[1].first - (runs[0].count - 1);
      covered += distance >= low && distance <= runs[1].first + runs[1].count - 1 ? 1 : 0;
    }
    return static_cast<double>(covered) / draws;
  };
  PositionOptions options = pose(2048, 16384);
  EXPECT_NEAR(share(options, 8192), 0.143, 0.01);
  EXPECT_NEAR(share(options, 16383 - 1024), 0.143 / 2, 0.01);
  EXPECT_LT(share(options, 16383 - 20), 0.005);
  options.target_margin = true;
  EXPECT_NEAR(share(options, 16383 - 1024), 2048.0 / 16384, 0.01);
}

TEST(Positions, PoseWithMoreChunks) {
  for (const std::int64_t chunks : {3, 4, 7}) {
    std::map<std::int64_t, std::int64_t> counts;
    for (std::uint64_t i = 0; i < 2000; ++i) {
      const auto runs = draw_positions(pose(64, 4096, chunks), {.seed = 1, .sample = i}, 64);
      ASSERT_EQ(tokens_of(runs), 64);
      ASSERT_EQ(runs.front().first, 0);
      for (std::size_t r = 1; r < runs.size(); ++r)
        ASSERT_GT(runs[r].first, runs[r - 1].first + runs[r - 1].count);
      ASSERT_LE(runs.back().first + runs.back().count, 4096);
      ++counts[static_cast<std::int64_t>(runs.size())];
    }
    EXPECT_EQ(counts.rbegin()->first, chunks);
    // Each jump is drawn above the one before, so late ones have little room, and a jump of 0 joins
    // two chunks.
    EXPECT_GT(counts[chunks], 1500);
  }
}

TEST(Positions, FirstChunkByTheTextOfThePaper) {
  PositionOptions options = pose(32, 1024);
  options.first_chunk_full = true;
  std::int64_t longest = 0;
  for (std::uint64_t i = 0; i < 2000; ++i) {
    const auto runs = draw_positions(options, {.sample = i}, 32);
    if (runs.size() == 2) longest = std::max(longest, runs.front().count);
  }
  EXPECT_EQ(longest, 31);
}

TEST(Positions, ShortDocuments) {
  for (const std::int64_t chunks : {2, 5})
    for (std::int64_t n = 1; n <= 6; ++n)
      for (std::uint64_t i = 0; i < 50; ++i) {
        const auto runs = draw_positions(pose(16, 16, chunks), {.sample = i}, n);
        EXPECT_EQ(tokens_of(runs), n);
        EXPECT_LE(runs.back().first + runs.back().count, 16);
      }
  // No room to jump.
  EXPECT_EQ(draw_positions(pose(16, 16), {}, 16), (std::vector<PositionRun>{{0, 16}}));
}

TEST(Positions, RandomizedIsAUniformSortedSample) {
  const PositionOptions options{
      .sampler = PositionSampler::kRandomized, .original_context = 4, .target_context = 9};
  const std::int64_t draws = 40000;
  std::map<std::int64_t, std::int64_t> sets;  // by bit mask: 126 of them
  for (std::uint64_t i = 0; i < draws; ++i) {
    std::int64_t mask = 0;
    for (const PositionRun& r : draw_positions(options, {.seed = 5, .sample = i}, 4))
      for (std::int64_t p = r.first; p < r.first + r.count; ++p) mask |= std::int64_t{1} << p;
    ++sets[mask];
  }
  EXPECT_LT(std::abs(chi_square_deviations(sets, 126, draws)), 4);
}

// The published code's lt2 and rt2: rt2 uniform in {n, .., |x|}, whatever the first chunk and the
// jump of positions.
TEST(Positions, PoseCutsTextAsPublished) {
  const std::int64_t n = 12, source = 30, draws = 60000;
  const PositionOptions options = pose(n, 64);
  std::map<std::int64_t, std::int64_t> last, joint;
  for (std::uint64_t i = 0; i < draws; ++i) {
    const PositionKey key{.seed = 11, .sample = i};
    const auto text = draw_text(options, key, n, source);
    ASSERT_EQ(text.front().begin, 0);
    const std::int64_t rt2 = text.back().begin + text.back().count;
    ASSERT_GE(rt2, n);
    ASSERT_LE(rt2, source);
    ++last[rt2];
    const std::int64_t first = text.size() == 1 ? 0 : text.front().count;
    if (first == 0) continue;
    ASSERT_EQ(text.size(), 2u);
    ASSERT_EQ(first + text.back().count, n);
    ++joint[rt2 * 100 + first];
    // The same first chunk as that of the positions.
    const auto runs = draw_positions(options, key, n);
    ASSERT_EQ(runs.size() == 2 ? runs.front().count : first, first);
  }
  EXPECT_LT(std::abs(chi_square_deviations(last, source - n + 1, draws)), 4);
  EXPECT_LT(std::abs(chi_square_deviations(joint, (source - n) * ((n + 1) / 2), draws - last[n])),
            4);
}

TEST(Positions, TextOffsets) {
  PositionOptions options = pose(16, 256, 4);
  for (std::uint64_t i = 0; i < 500; ++i) {
    const PositionKey key{.seed = 3, .sample = i};
    const auto runs = draw_positions(options, key, 16);
    options.content_offset = ContentOffset::kZero;
    EXPECT_EQ(draw_text(options, key, 16, 100), (std::vector<TextRun>{{0, 16}}));
    options.content_offset = ContentOffset::kSame;
    std::vector<TextRun> moved;  // where the text reaches as far as positions: the same jumps
    for (const PositionRun& r : runs) moved.push_back({r.first, r.count});
    EXPECT_EQ(draw_text(options, key, 16, 256), moved);
    EXPECT_LE(draw_text(options, key, 16, 20).back().begin, 19);
    options.content_offset = ContentOffset::kUniform;
    std::int64_t tokens = 0, end = -1;
    for (const TextRun& r : draw_text(options, key, 16, 100)) {
      EXPECT_GT(r.begin, end);
      end = r.begin + r.count;
      tokens += r.count;
    }
    EXPECT_EQ(tokens, 16);
    EXPECT_LE(end, 100);
    EXPECT_EQ(draw_text(options, key, 16, 16), (std::vector<TextRun>{{0, 16}}));
    EXPECT_EQ(draw_positions(options, key, 16), runs) << "positions depend on the text";
  }
}

// CREAM as its paper and code state it, from the standard library's generators: truncation by
// rejection, bounds as real numbers for documents of the original length.
struct Cream {
  std::int64_t ends, end;
};
Cream cream_by_hand(std::int64_t original, std::int64_t target, std::mt19937_64& random) {
  const std::int64_t s = target / original;
  const std::int64_t ends =
      std::bernoulli_distribution(0.5)(random) ? std::min(4 * s, original / 3) : original / 3;
  const std::int64_t middle = original - 2 * ends;
  std::normal_distribution<double> normal(static_cast<double>(1 + s), 3);
  double x = 0;
  do x = normal(random);
  while (x < 2 || x > static_cast<double>(2 * s));
  const auto alpha = static_cast<std::int64_t>(x);
  return {ends, std::uniform_int_distribution<std::int64_t>(
                    ends + (middle - 1) * alpha / 2, alpha * original / 2 - ends - 1)(random)};
}

TEST(Positions, CreamEqualsAnIndependentImplementation) {
  constexpr std::int64_t kDraws = 60000, kBins = 40;
  for (const auto& [original, target] :
       {std::pair<std::int64_t, std::int64_t>{96, 768}, {512, 16384}, {96, 192}}) {
    const PositionOptions options{
        .sampler = PositionSampler::kCream, .original_context = original, .target_context = target};
    std::mt19937_64 random(5);
    // Counts of (head, bin of the middle's end), ours and theirs.
    std::map<std::pair<std::int64_t, std::int64_t>, std::array<double, 2>> counts;
    for (std::uint64_t i = 0; i < kDraws; ++i) {
      const auto runs = draw_positions(options, {.seed = 2, .sample = i}, original);
      ASSERT_EQ(tokens_of(runs), original);
      ASSERT_EQ(runs.front().first, 0);
      ASSERT_EQ(runs.back().first + runs.back().count, target);
      for (std::size_t r = 1; r < runs.size(); ++r)
        ASSERT_GT(runs[r].first, runs[r - 1].first + runs[r - 1].count);
      const Cream b = cream_by_hand(original, target, random);
      // Where the middle touches an end its border does not show.
      const bool apart = b.end > original - b.ends - 1 && b.end < target - b.ends - 1;
      if (apart) ++counts[{b.ends, b.end * kBins / target}][1];
      if (runs.size() == 3)
        ++counts[{runs[0].count, (runs[1].first + runs[1].count - 1) * kBins / target}][0];
    }
    double chi = 0, freedom = 0;
    for (const auto& [bin, n] : counts) {
      if (n[0] + n[1] < 40) continue;
      chi += (n[0] - n[1]) * (n[0] - n[1]) / (n[0] + n[1]);
      ++freedom;
    }
    EXPECT_GT(freedom, 10);
    EXPECT_LT((chi - freedom) / std::sqrt(2 * freedom), 4) << original << " to " << target;
  }
}

TEST(Positions, CreamOfShortDocuments) {
  for (const std::int64_t target : {32, 40, 1024})
    for (std::int64_t n = 1; n <= 32; ++n)
      for (std::uint64_t i = 0; i < 60; ++i) {
        const auto runs = draw_positions(
            {.sampler = PositionSampler::kCream, .original_context = 32, .target_context = target},
            {.sample = i}, n);
        ASSERT_EQ(tokens_of(runs), n);
        ASSERT_GE(runs.front().first, 0);
        ASSERT_LE(runs.back().first + runs.back().count, target);
        ASSERT_TRUE(n < 3 || runs.back().first + runs.back().count == target) << n;
        for (std::size_t r = 1; r < runs.size(); ++r)
          ASSERT_GT(runs[r].first, runs[r - 1].first + runs[r - 1].count) << n;
      }
}

TEST(Positions, ADrawIsAFunctionOfItsKey) {
  const PositionOptions options = pose(2048, 131072);
  std::set<std::int64_t> seen;
  for (const PositionKey& key :
       {PositionKey{1, 0, 0}, PositionKey{2, 0, 0}, PositionKey{1, 1, 0}, PositionKey{1, 0, 1}}) {
    const auto runs = draw_positions(options, key, 2048);
    EXPECT_EQ(runs, draw_positions(options, key, 2048));
    seen.insert(runs.back().first);
  }
  EXPECT_EQ(seen.size(), 4u);
}

}  // namespace
}  // namespace farspan
