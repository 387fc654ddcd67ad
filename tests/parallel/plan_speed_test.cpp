// How long plans take at 1M tokens and 32 ranks. Times are printed, never asserted: what is checked
// is that nothing is lost at this size.
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <cstdio>

#include "parallel/attention_plan.h"
#include "parallel/random_documents.h"

namespace farspan {
namespace {

constexpr std::int64_t kTokens = std::int64_t{1} << 20;
constexpr int kRanks = 32;

std::vector<std::int32_t> packed(const std::vector<std::int64_t>& lengths) {
  std::vector<std::int32_t> segments;
  for (std::size_t d = 0; static_cast<std::int64_t>(segments.size()) < kTokens; ++d) {
    const std::int64_t room = kTokens - static_cast<std::int64_t>(segments.size());
    segments.insert(segments.end(),
                    static_cast<std::size_t>(std::min(room, lengths[d % lengths.size()])),
                    static_cast<std::int32_t>(d));
  }
  return segments;
}

std::vector<std::int64_t> lognormal(double median, double sigma) {
  std::mt19937_64 rng(1);
  std::lognormal_distribution<double> draw(std::log(median), sigma);
  std::vector<std::int64_t> lengths(5000);
  for (auto& n : lengths) n = 1 + static_cast<std::int64_t>(draw(rng));
  return lengths;
}

// Chunks of 1024 dealt out at random: what a balanced layout may look like at its worst.
SequenceLayout scattered() {
  std::mt19937_64 rng(2);
  std::vector<std::vector<IndexRange>> ranges(kRanks);
  for (std::int64_t begin = 0; begin < kTokens; begin += 1024) {
    auto& mine = ranges[rng() % kRanks];
    if (!mine.empty() && mine.back().end == begin)
      mine.back().end = begin + 1024;
    else
      mine.push_back({begin, begin + 1024});
  }
  return SequenceLayout(ranges);
}

TEST(PlanSpeed, AMillionTokens) {
  const std::vector<std::pair<const char*, std::vector<std::int32_t>>> documents = {
      {"lognormal 900", packed(lognormal(900, 1.9))},
      {"5243 of 200", packed({200})},
      {"one", packed({kTokens})}};
  const std::vector<std::pair<const char*, SequenceLayout>> layouts = {
      {"contiguous", SequenceLayout::make(LayoutKind::kContiguous, 1, kTokens, kRanks)},
      {"zigzag", SequenceLayout::make(LayoutKind::kZigzag, 1, kTokens, kRanks)},
      {"scattered", scattered()},
      {"striped", SequenceLayout::make(LayoutKind::kStriped, 1, kTokens, kRanks)}};
  const std::vector<AttentionPattern> patterns = {
      {},
      {.window = 4096, .sinks = 4},
      {.sparse = SparseKind::kBigBird},
      {.sparse = SparseKind::kShifted, .group = 8192},
      {.sparse = SparseKind::kDilated, .branches = {{8192, 1}, {32768, 4}}}};
  std::printf("%-16s %-12s %-44s %9s %9s %9s %9s\n", "documents", "layout", "pattern", "slices",
              "look, ms", "plan, ms", "gather");
  const auto ms = [](auto from, auto to) {
    return std::chrono::duration<double, std::milli>(to - from).count();
  };
  for (const auto& [lengths, segments] : documents)
    for (const auto& [name, layout] : layouts)
      for (const AttentionPattern& pattern : patterns) {
        // Blocks of 64 over 32 ranks: pieces of two tokens, two million slices a rank (0.7 s).
        if (layout.stride() > 1 && pattern.sparse == SparseKind::kBigBird) continue;
        const SequenceLayout fitted = layout.fitted(pattern.row_stride());
        PlanRequest request{.segments = segments,
                            .positions = {},
                            .layout = fitted,
                            .pattern = pattern,
                            .num_kv_heads = 8};
        const auto start = std::chrono::steady_clock::now();
        const AttentionPlanner planner(request);
        const auto looked = std::chrono::steady_clock::now();
        const AttentionPlan plan = planner.plan(kRanks / 2);
        const auto planned = std::chrono::steady_clock::now();
        request.gather = true;
        const AttentionPlan gathered = AttentionPlanner(request).plan(kRanks / 2);
        const auto end = std::chrono::steady_clock::now();
        std::size_t slices = 0;
        for (const auto& hop : plan.hops) slices += hop.slices.size();
        std::printf("%-16s %-12s %-44s %9zu %9.1f %9.1f %9.1f\n", lengths, name,
                    pattern.description().c_str(), slices, ms(start, looked), ms(looked, planned),
                    ms(planned, end));
        EXPECT_GT(plan.visible_pairs, 0);
        EXPECT_EQ(gathered.visible_pairs, plan.visible_pairs);
        EXPECT_EQ(gathered.gather.slices.size() + gathered.hops[0].slices.size(), slices);
      }
}

}  // namespace
}  // namespace farspan
