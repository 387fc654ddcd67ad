// What `positions` refuses, and what it fills in.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "config/validate.h"

namespace farspan {
namespace {

using ::testing::HasSubstr;

constexpr const char* kGood = R"(name: t
model: {vocab_size: 260, hidden_size: 128, intermediate_size: 352, num_hidden_layers: 2,
  num_attention_heads: 4}
data: {train: [{path: a.h5}]}
train: {sequence_length: 2k, batch_tokens: 2k, steps: 100}
)";

LoadResult check(std::vector<std::string> overrides) {
  return check_config(read_config(kGood, "a.yaml", overrides),
                      {.num_ranks = 1, .need_files = false});
}

std::string issues(const LoadResult& result, bool notes) {
  std::string out;
  for (const Issue& issue : result.issues)
    if (issue.note == notes && issue.key.find("path") == std::string::npos)
      out += to_text(issue) + "\n";
  return out;
}
std::string errors(std::vector<std::string> overrides) {
  return issues(check(std::move(overrides)), false);
}

const std::string kPose = "positions={sampler: pose, target_context: 16k}";

TEST(PositionRules, ContextsFollowFromTheRest) {
  const LoadResult r =
      check({"positions.sampler=pose",
             "model.rope.scaling={type: linear, original_context: 2k, factor: 8}"});
  EXPECT_EQ(issues(r, false), "");
  EXPECT_EQ(r.loaded.config.positions().original_context(), 2048);
  EXPECT_EQ(r.loaded.config.positions().target_context(), 16384);
  EXPECT_FALSE(check({}).loaded.config.positions().has_original_context());
}

TEST(PositionRules, LengthsThatDoNotGoTogether) {
  EXPECT_EQ(errors({kPose}), "");
  EXPECT_THAT(errors({"positions.sampler=randomized"}), HasSubstr("target_context: is missing"));
  EXPECT_THAT(errors({"positions={sampler: pose, target_context: 1k}"}),
              HasSubstr("below original_context 2048"));
  EXPECT_THAT(errors({kPose, "positions.original_context=1k"}),
              HasSubstr("more than positions.original_context 1024"));
  EXPECT_THAT(errors({kPose, "positions.chunks=1"}), HasSubstr("positions.chunks"));
  EXPECT_THAT(
      issues(check({kPose, "model.rope.scaling={type: linear, original_context: 2k, factor: 4}"}),
             true),
      HasSubstr("differs from model.rope.scaling.target_context 8192"));
}

// The factor alone says as much as contexts do.
TEST(PositionRules, TargetsThatTheFactorDoesNotReach) {
  const auto notes = [](const std::string& scaling) {
    return issues(check({kPose, "model.rope.scaling=" + scaling}), true);
  };
  EXPECT_THAT(notes("{type: linear, factor: 4}"),
              HasSubstr("16384 is 8 x original_context, and model.rope.scaling.factor is 4"));
  EXPECT_EQ(notes("{type: linear, factor: 8}"), "");
  EXPECT_EQ(notes("{type: linear, original_context: 2k, factor: 8}"), "");
}

TEST(PositionRules, ModelsThatMakeASamplerMeaningless) {
  EXPECT_THAT(errors({kPose, "model.position=none"}), HasSubstr("reads none"));
  EXPECT_THAT(
      errors({"positions={sampler: randomized, target_context: 16k}", "model.position=alibi"}),
      HasSubstr("jumps at every token"));
  EXPECT_EQ(errors({kPose, "model.position=alibi"}), "");
  EXPECT_THAT(issues(check({kPose, "model.sliding_window=256"}), true), HasSubstr("never meet"));
  const std::string window = "model.sliding_window=256";
  EXPECT_EQ(
      issues(check({kPose, window, "model.layer_types=[full_attention, sliding_attention]"}), true),
      "");
  EXPECT_THAT(
      issues(check({kPose, window, "model.layer_types=[sliding_attention, sliding_attention]"}),
             true),
      HasSubstr("never meet"));
  EXPECT_THAT(issues(check({kPose, "model.sparse_attention={type: s2, group_size: 512}"}), true),
              HasSubstr("hides most far tokens"));
}

TEST(PositionRules, SourceWindows) {
  EXPECT_EQ(errors({kPose, "positions.source_window=8k", "positions.content_offset=same"}), "");
  EXPECT_THAT(errors({kPose, "positions.source_window=1k"}), HasSubstr("less than the 2048"));
  EXPECT_THAT(
      issues(check({kPose, "positions.source_window=8k", "positions.content_offset=zero"}), true),
      HasSubstr("last 6144 of 8192 tokens are never shown"));
  EXPECT_THAT(errors({kPose, "positions.content_offset=same"}),
              HasSubstr("pose with a source_window"));
  EXPECT_THAT(
      errors({"positions={sampler: cream, target_context: 16k}", "positions.source_window=8k"}),
      HasSubstr("read by pose only"));
}

TEST(PositionRules, Cream) {
  EXPECT_EQ(errors({"positions={sampler: cream, target_context: 16k}"}), "");
  EXPECT_EQ(errors({"positions={sampler: cream, target_context: 16k}", "model.position=alibi"}),
            "");
  EXPECT_THAT(errors({"positions={sampler: cream, target_context: 1k}"}),
              HasSubstr("below original_context 2048"));
  EXPECT_THAT(errors({"positions={sampler: cream, target_context: 16k}", "positions.chunks=3"}),
              HasSubstr("read by pose only"));
}

TEST(PositionRules, TableOfLearnedPositions) {
  const std::string learned = "model.position=learned";
  const auto rows = [](const LoadResult& r) {
    return r.loaded.config.model().max_position_embeddings();
  };
  EXPECT_EQ(issues(check({learned}), false), "");
  EXPECT_EQ(rows(check({learned})), 2048);
  EXPECT_EQ(rows(check({learned, kPose, "positions.target_margin=true"})), 18432);
  EXPECT_THAT(errors({learned, "model.max_position_embeddings=1k"}),
              HasSubstr("training reaches position 2047"));
  EXPECT_THAT(errors({"model.max_position_embeddings=4k"}), HasSubstr("read by learned only"));
  EXPECT_EQ(errors({"model.position=sinusoidal"}), "");
}

TEST(PositionRules, WhatNothingReads) {
  const LoadResult r = check({"positions.target_context=4k", "positions.target_margin=true"});
  EXPECT_THAT(issues(r, false), HasSubstr("positions.target_context"));
  EXPECT_THAT(issues(r, false), HasSubstr("read by pose only"));
}

}  // namespace
}  // namespace farspan
