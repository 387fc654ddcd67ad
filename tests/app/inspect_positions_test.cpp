// farspan inspect positions: the counting against every pair of tokens one by one, and the JSON's
// keys.
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "app/position_report.h"

namespace farspan::app {
namespace {

// As the report defines its numbers, pair by pair.
PositionReport by_hand(const PositionOptions& options, const PositionQuestion& question) {
  PositionReport r{.question = question, .options = options, .end = options.end(question.tokens)};
  r.counted = question.samples;
  std::vector<double> pairs(static_cast<std::size_t>(r.end)), shown(pairs.size());
  for (std::int64_t i = 0; i < question.samples; ++i) {
    std::vector<std::int64_t> positions;
    const auto runs = draw_positions(
        options, {.seed = question.seed, .sample = static_cast<std::uint64_t>(i)}, question.tokens);
    for (const PositionRun& run : runs)
      for (std::int64_t k = 0; k < run.count; ++k) positions.push_back(run.first + k);
    std::set<std::int64_t> distances;
    for (std::size_t b = 0; b < positions.size(); ++b)
      for (std::size_t a = 0; a < b; ++a) {
        ++pairs[static_cast<std::size_t>(positions[b] - positions[a])];
        distances.insert(positions[b] - positions[a]);
      }
    for (const std::int64_t d : distances) ++shown[static_cast<std::size_t>(d)];
    r.max_position = std::max(r.max_position, positions.back());
    r.first_chunk_mean +=
        static_cast<double>(runs.front().count) / static_cast<double>(question.samples);
  }
  double all = 0;
  std::array<double, kDistanceBins> sizes{};
  for (std::size_t d = 1; d < pairs.size(); ++d) {
    const std::size_t bin = d * kDistanceBins / pairs.size();
    r.histogram[bin] += pairs[d];
    r.coverage[bin] += shown[d] / static_cast<double>(question.samples);
    ++sizes[bin];
    all += pairs[d];
    r.share_of_distances += (shown[d] > 0 ? 1.0 : 0.0) / static_cast<double>(r.end - 1);
  }
  for (std::size_t bin = 0; bin < kDistanceBins; ++bin) {
    r.histogram[bin] /= all;
    if (sizes[bin] > 0) r.coverage[bin] /= sizes[bin];
  }
  return r;
}

void expect_same(const PositionReport& actual, const PositionReport& expected) {
  EXPECT_EQ(actual.end, expected.end);
  EXPECT_EQ(actual.counted, expected.counted);
  EXPECT_EQ(actual.max_position, expected.max_position);
  EXPECT_NEAR(actual.first_chunk_mean, expected.first_chunk_mean, 1e-9);
  EXPECT_NEAR(actual.share_of_distances, expected.share_of_distances, 1e-9);
  for (std::size_t bin = 0; bin < kDistanceBins; ++bin) {
    EXPECT_NEAR(actual.histogram[bin], expected.histogram[bin], 1e-9) << "bin " << bin;
    EXPECT_NEAR(actual.coverage[bin], expected.coverage[bin], 1e-9) << "bin " << bin;
  }
}

TEST(InspectPositions, CountsAsPairByPair) {
  PositionOptions pose{
      .sampler = PositionSampler::kPose, .original_context = 60, .target_context = 700};
  const PositionQuestion question{.samples = 40, .tokens = 60, .seed = 9};
  expect_same(measure_positions(pose, question), by_hand(pose, question));
  pose.chunks = 5;
  pose.target_margin = true;
  expect_same(measure_positions(pose, question), by_hand(pose, question));
  const PositionOptions randomized{
      .sampler = PositionSampler::kRandomized, .original_context = 60, .target_context = 100};
  expect_same(measure_positions(randomized, question), by_hand(randomized, question));
  expect_same(measure_positions({}, question), by_hand({}, question));
  const PositionOptions cream{
      .sampler = PositionSampler::kCream, .original_context = 60, .target_context = 700};
  expect_same(measure_positions(cream, question), by_hand(cream, question));
}

TEST(InspectPositions, Json) {
  const PositionOptions pose{
      .sampler = PositionSampler::kPose, .original_context = 2048, .target_context = 16384};
  const auto json =
      position_json(measure_positions(pose, {.samples = 2000, .tokens = 2048, .seed = 1}));
  EXPECT_EQ(json["samples"], 2000);
  EXPECT_EQ(json["histogram"].size(), 64u);
  double sum = 0;
  for (const double x : json["histogram"]) sum += x;
  EXPECT_NEAR(sum, 1, 1e-9);
  EXPECT_LT(json["max_position"], 16384);
  EXPECT_GT(json["max_position"], 16000);
  EXPECT_NEAR(json["first_chunk_mean"].get<double>(), 512, 30);
  EXPECT_NEAR(json["coverage"][32].get<double>(), 0.143, 0.02);
  EXPECT_GT(json["share_of_distances_covered"].get<double>(), 0.99);
  EXPECT_EQ(json["target_context"], 16384);
  EXPECT_EQ(json["histogram_end"], 16384);
  EXPECT_FALSE(json.contains("stage"));
}

// The margin is drawn from, and is no part of the target.
TEST(InspectPositions, TargetMarginIsNotTheTarget) {
  const PositionOptions pose{.sampler = PositionSampler::kPose,
                             .original_context = 256,
                             .target_context = 2048,
                             .target_margin = true};
  const auto json = position_json(measure_positions(pose, {.samples = 10, .tokens = 256}));
  EXPECT_EQ(json["target_context"], 2048);
  EXPECT_EQ(json["histogram_end"], 2304);
  EXPECT_EQ(position_json(measure_positions({}, {.samples = 1, .tokens = 64}))["target_context"],
            64);
}

// Jumps at every token: too many pairs for all samples, and the report says how many it counted.
TEST(InspectPositions, ManyJumpsAreCountedForSomeSamples) {
  const PositionOptions randomized{
      .sampler = PositionSampler::kRandomized, .original_context = 4096, .target_context = 131072};
  const PositionReport r = measure_positions(randomized, {.samples = 60, .tokens = 4096});
  EXPECT_GT(r.counted, 5);
  EXPECT_LT(r.counted, 60);
  EXPECT_NE(position_text(r).find("samples counted"), std::string::npos);
}

}  // namespace
}  // namespace farspan::app
