// What `model.rope.scaling` refuses, and what it fills in.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "config/validate.h"

namespace farspan {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr const char* kGood = R"(name: t
model: {vocab_size: 260, hidden_size: 128, intermediate_size: 352, num_hidden_layers: 2,
  num_attention_heads: 4}
data: {train: [{path: a.h5}]}
train: {sequence_length: 2k, batch_tokens: 2k, steps: 100}
)";

LoadResult check(const std::string& scaling, std::vector<std::string> more = {}) {
  more.insert(more.begin(), "model.rope.scaling={" + scaling + "}");
  return check_config(read_config(kGood, "a.yaml", more), {.num_ranks = 1, .need_files = false});
}

std::string issues(const LoadResult& result, bool notes) {
  std::string out;
  for (const Issue& issue : result.issues)
    if (issue.note == notes && issue.key.find("path") == std::string::npos)
      out += to_text(issue) + "\n";
  return out;
}
std::string errors(const std::string& scaling, std::vector<std::string> more = {}) {
  return issues(check(scaling, std::move(more)), false);
}

TEST(RotaryRules, OfFactorAndContextsTheThirdFollows) {
  const auto both = check("type: yarn, original_context: 4k, target_context: 64k");
  EXPECT_EQ(issues(both, false), "");
  EXPECT_EQ(both.loaded.config.model().rope().scaling().factor(), 16);
  const auto target = check("type: linear, original_context: 256, factor: 8");
  EXPECT_EQ(target.loaded.config.model().rope().scaling().target_context(), 2048);
  // Llama 3.1: 8 divides wavelengths, and the context grows sixteenfold.
  const auto llama = check("type: llama3, original_context: 8k, target_context: 128k, factor: 8");
  EXPECT_EQ(issues(llama, false), "");
  EXPECT_EQ(llama.loaded.config.model().rope().scaling().factor(), 8);
}

TEST(RotaryRules, WhatEachTypeNeeds) {
  EXPECT_THAT(errors("type: linear"), HasSubstr("factor: is missing"));
  EXPECT_THAT(errors("type: ntk, original_context: 4k"), HasSubstr("factor: is missing"));
  EXPECT_THAT(errors("type: yarn, factor: 4"), HasSubstr("original_context: is missing"));
  EXPECT_THAT(errors("type: llama3, original_context: 8k, target_context: 128k"),
              HasSubstr("8 for Llama 3.1"));
  EXPECT_EQ(errors("type: ntk, factor: 4"), "");
}

TEST(RotaryRules, NumbersThatContradictOneAnother) {
  EXPECT_THAT(errors("type: linear, original_context: 4k, target_context: 2k"),
              HasSubstr("below original_context 4096"));
  const std::string text =
      errors("type: yarn, original_context: 4k, target_context: 64k, factor: 8");
  EXPECT_THAT(text, HasSubstr("8 x original_context 4096 is 32768, and target_context is 65536"));
  EXPECT_THAT(text, HasSubstr("it is 16"));
  EXPECT_THAT(errors("type: yarn, original_context: 4k, factor: 4, beta_fast: 1"),
              HasSubstr("not above beta_slow"));
  EXPECT_THAT(errors("type: llama3, original_context: 8k, factor: 8, high_freq_factor: 1"),
              HasSubstr("not above low_freq_factor"));
}

TEST(RotaryRules, WhatNothingReads) {
  EXPECT_THAT(issues(check("factor: 4"), false) + issues(check("factor: 4"), true),
              HasSubstr("model.rope.scaling.type is none"));
  EXPECT_THAT(errors("type: linear, factor: 4", {"model.position=alibi"}),
              HasSubstr("rotates nothing"));
  EXPECT_THAT(errors("type: linear, factor: 4, form: pose"), HasSubstr("read by yarn only"));
}

TEST(RotaryRules, ScaledLayersAreThoseThatDoNotSlide) {
  const std::string yarn = "type: yarn, original_context: 1k, factor: 4, layers: full_attention";
  const std::string window = "model.sliding_window=64";
  const auto mixed = check(yarn, {window, "model.layer_types=[sliding_attention, full_attention]"});
  EXPECT_EQ(issues(mixed, false), "");
  EXPECT_THAT(issues(mixed, true), Not(HasSubstr("scaling.layers")));
  for (const std::vector<std::string>& all :
       {std::vector<std::string>{window},
        {window, "model.layer_types=[sliding_attention, sliding_attention]"}}) {
    const std::string text = errors(yarn, all);
    EXPECT_THAT(text, HasSubstr("model.rope.scaling.layers: full_attention, and all 2 layers "
                                "slide: yarn scales none of them"));
    EXPECT_THAT(text, HasSubstr("use layers: all"));
  }
  const auto none = check(yarn);
  EXPECT_EQ(issues(none, false), "");
  EXPECT_THAT(issues(none, true), HasSubstr("no layer slides: all of them are scaled"));
  EXPECT_THAT(errors("layers: full_attention"), HasSubstr("model.rope.scaling.type is none"));
  EXPECT_THAT(errors("type: yarn, layers: sliding_attention"),
              HasSubstr("one of: all, full_attention"));
}

// A mistake in the number of layer types is said once.
TEST(RotaryRules, ScaledLayersOfAListThatDoesNotFit) {
  const std::string text =
      errors("type: ntk, factor: 4, layers: full_attention",
             {"model.sliding_window=64", "model.layer_types=[full_attention]"});
  EXPECT_THAT(text, HasSubstr("1 entries for 2 layers"));
  EXPECT_THAT(text, Not(HasSubstr("scaling.layers")));
}

TEST(RotaryRules, SequencesBeyondTheTargetAreWorthANote) {
  const auto far = check("type: linear, original_context: 256, target_context: 1k");
  EXPECT_EQ(issues(far, false), "");
  EXPECT_THAT(issues(far, true), HasSubstr("reach beyond target_context 1024"));
}

}  // namespace
}  // namespace farspan
