#include "config/validate.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

namespace farspan {
namespace {

constexpr const char* kGood = R"(name: t
model:
  vocab_size: 260
  hidden_size: 128
  intermediate_size: 352
  num_hidden_layers: 2
  num_attention_heads: 4
  num_key_value_heads: 2
data: {train: [{path: a.h5}], validation: b.h5}
train: {sequence_length: 2k, batch_tokens: 16k, steps: 100}
parallel: {context: 2}
)";

LoadResult check(std::vector<std::string> overrides = {}, int ranks = 2, bool need_files = false) {
  return check_config(read_config(kGood, "a.yaml", overrides),
                      {.num_ranks = ranks, .need_files = need_files});
}

std::string errors(const LoadResult& result) {
  std::string out;
  for (const Issue& issue : result.issues)
    if (!issue.note) out += to_text(issue) + "\n";
  return out;
}

RunConfig resolved(std::vector<std::string> overrides, int ranks = 2) {
  const LoadResult result = check(std::move(overrides), ranks);
  EXPECT_EQ(errors(result), "");
  return result.loaded.config;
}

TEST(Resolve, ModelAndNames) {
  const RunConfig c = resolved({"model.num_key_value_heads=null"});
  EXPECT_EQ(c.output_dir(), "runs/t");
  EXPECT_EQ(c.model().head_dim(), 32);
  EXPECT_EQ(c.model().num_key_value_heads(), 4);
  ASSERT_EQ(c.optimizer().betas_size(), 2);
  EXPECT_EQ(c.optimizer().betas(1), 0.95);
  EXPECT_EQ(resolved({"model.head_dim=64"}).model().head_dim(), 64);
}

TEST(Resolve, Mesh) {
  EXPECT_EQ(resolved({}, 4).parallel().data(), 2);
  EXPECT_EQ(resolved({"parallel.context=auto"}, 4).parallel().context(), 4);
  EXPECT_EQ(resolved({"parallel.context=auto"}, 4).parallel().data(), 1);
  EXPECT_EQ(resolved({"parallel.context=auto", "parallel.data=2"}, 4).parallel().context(), 2);
  const RunConfig c = resolved({"parallel.attention=auto", "parallel.layout=auto"});
  EXPECT_EQ(c.parallel().attention(), "ring");
  EXPECT_EQ(c.parallel().layout(), "zigzag");
  EXPECT_EQ(c.parallel().attention_kernel(), "own");
  EXPECT_EQ(c.parallel().ulysses(), 1);
}

TEST(Resolve, Batch) {
  EXPECT_EQ(resolved({"train.batch_tokens=null"}, 4).train().batch_tokens(), 2 * 2048);
  // 8 sequences, at most 8192 * 2 tokens a pass: all 8; with one context rank 4.
  EXPECT_EQ(resolved({}).train().micro_batch(), 8);
  EXPECT_EQ(resolved({"parallel.context=1"}, 1).train().micro_batch(), 4);
  // 3 divides 9 and fits 8192 tokens; 9 does not.
  EXPECT_EQ(resolved({"parallel.context=1", "train.batch_tokens=18k"}, 1).train().micro_batch(), 3);
  // A sequence longer than the limit still passes, one at a time.
  EXPECT_EQ(
      resolved({"train.sequence_length=64k", "train.batch_tokens=128k"}).train().micro_batch(), 1);
  EXPECT_EQ(resolved({"train.micro_batch=2"}).train().micro_batch(), 2);
}

TEST(Resolve, TokensBecomeStepsRoundedUp) {
  const RunConfig c = resolved({"train.steps=null", "train.tokens=1M"});
  EXPECT_EQ(c.train().steps(), 62);  // 1,000,000 / 16,384 = 61.04
  EXPECT_FALSE(c.train().has_tokens());
  EXPECT_EQ(resolved({"train.steps=null", "train.tokens=16384"}).train().steps(), 1);
}

TEST(Resolve, SharesBecomeSteps) {
  EXPECT_EQ(resolved({"schedule.warmup=2%"}).schedule().warmup(), 2);
  EXPECT_EQ(resolved({"schedule.warmup=0.1%"}).schedule().warmup(), 1);
  EXPECT_EQ(resolved({"schedule.warmup=0"}).schedule().warmup(), 0);
  EXPECT_EQ(resolved({"schedule.type=wsd"}).schedule().decay(), 10);
}

TEST(Resolve, IsStableAndItsYamlRunsTheSame) {
  const LoadResult once = check({"train.steps=null", "train.tokens=1M", "schedule.warmup=5%"}, 4);
  const std::string yaml = to_yaml(once.loaded.config);
  const LoadResult again =
      check_config(read_config(yaml, "r.yaml", {}), {.num_ranks = 4, .need_files = false});
  EXPECT_EQ(errors(again), "");
  EXPECT_EQ(to_yaml(again.loaded.config), yaml);
  EXPECT_TRUE(once.loaded.origins.at("train.steps").starts_with("implied: "));
}

TEST(Resolve, JoinedDocumentsKeepCounting) {
  EXPECT_TRUE(resolved({}).positions().reset_per_document());
  EXPECT_FALSE(resolved({"data.documents=joined"}).positions().reset_per_document());
  EXPECT_TRUE(resolved({"data.documents=joined", "positions.reset_per_document=true"})
                  .positions()
                  .reset_per_document());
}

TEST(Resolve, NaturalRanks) {
  const RunConfig c = read_config(kGood, "a.yaml", {}).loaded.config;
  EXPECT_EQ(natural_ranks(c), 2);
  EXPECT_EQ(natural_ranks(RunConfig{}), 1);
  EXPECT_EQ(errors(check({}, 0)), "");
}

struct RuleCase {
  std::vector<std::string> overrides;
  int ranks;
  const char* key;
  std::vector<const char*> words;
};

TEST(Validate, Rules) {
  const RuleCase cases[] = {
      {{"model.num_key_value_heads=3"},
       2,
       "model.num_key_value_heads",
       {"3 does not divide", "1, 2 or 4"}},
      {{"model.num_attention_heads=6"}, 2, "model.num_attention_heads", {"hidden_size 128"}},
      {{"model.head_dim=33"}, 2, "model.head_dim", {"odd"}},
      {{"model.vocab_size=null"}, 2, "model.vocab_size", {"missing"}},
      {{"model.layer_types=[full_attention]"}, 2, "model.layer_types", {"1 entries for 2 layers"}},
      {{},
       1,
       "parallel.context",
       {"1 rank does not fit", "mpirun -np 2", "--local-ranks 2", "parallel.context=1"}},
      {{}, 3, "parallel.context", {"3 ranks do not fit", "multiple of 2", "parallel.context=3"}},
      {{"parallel.data=2"},
       2,
       "parallel.context",
       {"data 2 x context 2", "mpirun -np 4", "parallel.context=1"}},
      {{"train.batch_tokens=5000"}, 2, "train.batch_tokens", {"not a multiple", "4096 or 6144"}},
      {{"train.batch_tokens=2k"}, 4, "train.batch_tokens", {"2 data ranks", "use 4096"}},
      {{"train.micro_batch=3"}, 2, "train.micro_batch", {"does not divide the 8 sequences"}},
      {{"train.tokens=1M"}, 2, "train.tokens", {"train.steps 100 is given too"}},
      {{"train.steps=null"}, 2, "train.steps", {"missing"}},
      {{"schedule.decay=50"}, 2, "schedule.decay", {"read by wsd only"}},
      {{"optimizer.betas=[0.9]"}, 2, "optimizer.betas", {"1 entries", "write two"}},
      {{"data.train=null"}, 2, "data.train", {"missing"}},
      {{"data.train=[{weight: 1}]"}, 2, "data.train[0].path", {"missing"}},
      {{"data.validation=null", "evaluation.every=5"},
       2,
       "data.validation",
       {"evaluation.every is 5"}},
      {{"name=a/b"}, 2, "name", {"outside runs/"}},
      {{"name=''"}, 2, "name", {"empty"}},
      {{"output_dir=''"}, 2, "output_dir", {"empty"}},
  };
  for (const RuleCase& c : cases) {
    const LoadResult result = check(c.overrides, c.ranks);
    const std::string text = errors(result);
    const std::string name = c.overrides.empty() ? std::to_string(c.ranks) : c.overrides[0];
    int found = 0;
    for (const Issue& issue : result.issues) found += issue.note ? 0 : 1;
    ASSERT_EQ(found, 1) << name << "\n" << text;
    EXPECT_NE(text.find(std::string(c.key) + ":"), std::string::npos) << name << "\n" << text;
    for (const char* word : c.words)
      EXPECT_NE(text.find(word), std::string::npos) << name << ": " << word << "\n" << text;
  }
}

TEST(Validate, UnbuiltFeaturesAreRefusedByName) {
  const std::pair<const char*, const char*> cases[] = {
      {"model.from=/some/dir", "model.from"},
      {"model.position=alibi", "use rope"},
      {"model.sliding_window=4k", "use 0"},
      {"model.attention_sinks=4", "use 0"},
      {"model.layer_types=[full_attention, sliding_attention]", "use full_attention"},
      {"model.sparse_attention.type=dilated", "use none"},
      {"model.rope.scaling.type=yarn", "use none"},
      {"model.rope.scaling.factor=2", "leave"},
      {"data.packing=best_fit", "use concat"},
      {"train.recompute=offload", "full+attention"},
      {"parallel.attention=ulysses", "auto or ring"},
      {"parallel.ulysses=2", "auto or 1"},
      {"parallel.layout=striped", "contiguous or zigzag"},
      {"parallel.zero=1", "use 0"},
      {"parallel.attention_kernel=cudnn", "auto or own"},
      {"parallel.deterministic=false", "use true"},
      {"parallel.invariant=true", "use false"},
      {"positions.sampler=pose", "use sequential"},
      {"positions.chunks=2", "leave"},
      {"curriculum.type=growlength", "use fixed"},
      {"curriculum.stages=[{sequence_length: 4k, tokens: 1M}]", "leave curriculum.stages out"},
      {"evaluation.passkey.lengths=[1k]", "leave"},
  };
  for (const auto& [override_text, words] : cases) {
    const std::string text = errors(check({override_text}));
    EXPECT_NE(text.find("is not built yet"), std::string::npos) << override_text << "\n" << text;
    EXPECT_NE(text.find(words), std::string::npos) << override_text << "\n" << text;
    EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 2) << override_text << "\n" << text;
  }
}

TEST(Validate, WhatFollowsFromAnEarlierIssueIsNotReported) {
  // The typo leaves hidden_size missing: one issue, not two. The batch is wrong by itself.
  std::string yaml = kGood;
  yaml.replace(yaml.find("hidden_size"), 11, "hiden_size");
  const LoadResult result = check_config(read_config(yaml, "a.yaml", {{"train.batch_tokens=5000"}}),
                                         {.num_ranks = 2, .need_files = false});
  const std::string text = errors(result);
  EXPECT_NE(text.find("did you mean hidden_size?"), std::string::npos) << text;
  EXPECT_NE(text.find("not a multiple"), std::string::npos) << text;
  EXPECT_EQ(text.find("missing"), std::string::npos) << text;
}

TEST(Validate, FilesAreNotesUntilNeeded) {
  LoadResult result = check();
  ASSERT_EQ(result.issues.size(), 2u);
  EXPECT_TRUE(result.issues[0].note);
  result = check({}, 2, true);
  EXPECT_NE(errors(result).find("a.h5 does not exist"), std::string::npos);
  EXPECT_NE(errors(result).find("data.train[0].path"), std::string::npos);
  EXPECT_NE(errors(result).find("a.yaml:9:23"), std::string::npos) << errors(result);
  EXPECT_NE(errors(check({"data.validation=/tmp"}, 2, true)).find("is a folder"),
            std::string::npos);
  EXPECT_NE(errors(check({"output_dir=/dev/null/x"}, 2, true)).find("/dev/null is not a folder"),
            std::string::npos);
}

// A trial with fewer steps than the configuration's warmup must start.
TEST(Validate, ShortTrialsAreNotes) {
  const std::pair<std::vector<std::string>, const char*> cases[] = {
      {{"schedule.warmup=100"}, "100 steps of warmup leave nothing of the 100 steps"},
      {{"schedule.warmup=20", "train.steps=5"}, "leave nothing of the 5 steps"},
      {{"schedule.type=wsd", "schedule.warmup=60", "schedule.decay=50"}, "is shortened"},
  };
  for (const auto& [overrides, words] : cases) {
    const LoadResult result = check(overrides);
    EXPECT_EQ(errors(result), "");
    std::string notes;
    for (const Issue& issue : result.issues) notes += to_text(issue) + "\n";
    EXPECT_NE(notes.find(words), std::string::npos) << notes;
  }
  EXPECT_EQ(check({"schedule.warmup=99"}).issues.size(), check({}).issues.size());
}

TEST(Validate, CudaNeedsACudaBuild) {
  const LoadResult result = check({"device=cuda"});
  for (const Issue& issue : result.issues)
    if (issue.key == "device") {
      EXPECT_TRUE(issue.note);
      EXPECT_NE(errors(check({"device=cuda"}, 2, true)).find("--preset cuda"), std::string::npos);
    }
}

TEST(Validate, NeverDividesByWhatIsMissing) {
  for (const char* yaml :
       {"model: {}\n", "train: {sequence_length: null}\n", "parallel: {data: 7}\n",
        "model: {num_attention_heads: 2147483647, hidden_size: 2147483647}\n"
        "train: {sequence_length: 2147483647, batch_tokens: 4503599627370496}\n"})
    for (int ranks : {1, 3, 1048576})
      EXPECT_NE(errors(check_config(read_config(yaml, "a.yaml", {}),
                                    {.num_ranks = ranks, .need_files = false})),
                "");
}

TEST(Validate, LoadResolvedThrowsEverythingAtOnce) {
  const std::filesystem::path path =
      std::filesystem::path(testing::TempDir()) / "farspan_validate_test.yaml";
  std::ofstream(path) << kGood;
  const std::vector<std::string> bad = {"train.stpes=5", "train.batch_tokens=5000"};
  EXPECT_THROW(load_resolved(path, bad, {.num_ranks = 2, .need_files = false}), ConfigError);
  EXPECT_EQ(load_resolved(path, {}, {.num_ranks = 2, .need_files = false}).config.parallel().data(),
            1);
  EXPECT_EQ(load_resolved(path, {}, {.num_ranks = 2, .need_files = false}).notes.size(), 2u);
  std::filesystem::remove(path);
}

TEST(Resume, OnlyWhatCannotChangeConflicts) {
  const RunConfig saved = resolved({});
  EXPECT_TRUE(resume_conflicts(saved, saved).empty());
  const RunConfig allowed = resolved(
      {"train.steps=200", "optimizer.lr=1", "checkpoint.every=7", "logging.every=3",
       "parallel.layout=contiguous", "name=u", "train.recompute=full", "evaluation.every=4"},
      4);
  EXPECT_TRUE(resume_conflicts(saved, allowed).empty());
  const auto conflicts =
      resume_conflicts(saved, resolved({"model.hidden_size=256", "model.head_dim=32", "seed=2",
                                        "data.train=[a.h5, c.h5]", "train.precision=fp32"}));
  ASSERT_EQ(conflicts.size(), 5u);
  EXPECT_NE(std::find(conflicts.begin(), conflicts.end(),
                      "model.hidden_size: 128 in the saved run, 256 now"),
            conflicts.end());
}

}  // namespace
}  // namespace farspan
