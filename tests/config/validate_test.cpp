#include "config/validate.h"

#include <gtest/gtest.h>

#include <algorithm>
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
  const RunConfig c = resolved({});
  EXPECT_EQ(c.parallel().attention(), "ring");
  EXPECT_EQ(c.parallel().layout(), "zigzag");
  EXPECT_EQ(c.parallel().attention_kernel(), "own");
  EXPECT_EQ(c.parallel().ulysses(), 1);
}

TEST(Resolve, AutomaticShardingWaitsForTheData) {
  const std::vector<std::string> both = {"parallel.attention=auto", "parallel.layout=auto"};
  const LoadResult result = check(both);
  EXPECT_EQ(errors(result), "");
  EXPECT_EQ(result.loaded.config.parallel().attention(), "auto");
  EXPECT_EQ(result.loaded.config.parallel().layout(), "auto");
  EXPECT_EQ(result.loaded.config.parallel().ulysses(), 0);
  EXPECT_NE(result.loaded.origins.at("parallel.layout").find("from the first batch"),
            std::string::npos);
  std::string notes;
  for (const Issue& issue : result.issues) notes += to_text(issue) + "\n";
  EXPECT_NE(notes.find("parallel.attention: auto is chosen when the run starts"), std::string::npos)
      << notes;
  EXPECT_NE(notes.find("parallel.layout: auto is chosen"), std::string::npos) << notes;
  std::vector<std::string> alone = both;
  alone.emplace_back("parallel.context=1");
  const RunConfig c = resolved(alone, 1);
  EXPECT_EQ(c.parallel().attention(), "ring");
  EXPECT_EQ(c.parallel().layout(), "contiguous");
  EXPECT_EQ(c.parallel().ulysses(), 1);
}

// The mode has one strategy. What is typed counts more than the file; two equal wishes that cannot
// both be had are refused.
TEST(Resolve, InvariantTakesAllgather) {
  const auto attention = [](std::string_view yaml, std::vector<std::string> overrides) {
    const LoadResult result =
        check_config(read_config(yaml, "a.yaml", overrides), {.num_ranks = 2, .need_files = false});
    std::string notes;
    for (const Issue& issue : result.issues) notes += to_text(issue) + "\n";
    return std::pair(result.loaded.config.parallel().attention(), notes);
  };
  std::string given = kGood;
  given.replace(given.find("{context: 2}"), 12, "{context: 2, attention: ring}");
  for (const char* wish : {"auto", "allgather", "null"})
    EXPECT_EQ(
        attention(kGood, {"parallel.invariant=true", std::string("parallel.attention=") + wish})
            .first,
        "allgather");
  EXPECT_EQ(attention(kGood, {"parallel.invariant=true"}).second.find("parallel.attention"),
            std::string::npos);
  const auto [replaced, note] = attention(given, {"parallel.invariant=true"});
  EXPECT_EQ(replaced, "allgather");
  EXPECT_NE(note.find("is allgather: parallel.invariant, instead of ring of a.yaml"),
            std::string::npos)
      << note;
  EXPECT_EQ(errors(check({"parallel.invariant=true", "parallel.layout=striped"})), "");
  for (const char* strategy : {"ring", "ulysses", "hybrid"}) {
    const std::string text =
        errors(check({"parallel.invariant=true", std::string("parallel.attention=") + strategy}));
    EXPECT_NE(text.find("allgather (or auto)"), std::string::npos) << strategy << text;
  }
}

TEST(Resolve, UlyssesSize) {
  const auto size = [](const char* strategy, int context, int heads) {
    return resolved({std::string("parallel.attention=") + strategy,
                     "parallel.context=" + std::to_string(context),
                     "model.num_attention_heads=" + std::to_string(heads),
                     "model.num_key_value_heads=2", "model.head_dim=32"},
                    context)
        .parallel()
        .ulysses();
  };
  EXPECT_EQ(size("ring", 4, 4), 1);
  EXPECT_EQ(size("allgather", 4, 4), 1);
  EXPECT_EQ(size("ulysses", 4, 4), 4);
  EXPECT_EQ(size("hybrid", 4, 4), 2);
  EXPECT_EQ(size("hybrid", 8, 24), 4);
  EXPECT_EQ(size("hybrid", 64, 64), 8) << "at most the ranks of a machine";
  EXPECT_EQ(size("hybrid", 12, 6), 6);
  EXPECT_EQ(size("hybrid", 1, 4), 1);
  EXPECT_EQ(resolved({"parallel.context=4", "parallel.attention=hybrid", "parallel.ulysses=2"}, 4)
                .parallel()
                .ulysses(),
            2);
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
      {{"model.head_dim=33", "model.position=xpos"}, 2, "model.head_dim", {"xpos rotates pairs"}},
      {{"model.attention_sinks=4"}, 2, "model.attention_sinks", {"sliding_window is 0", "4k"}},
      {{"model.sliding_window=0", "model.layer_types=[full_attention, sliding_attention]"},
       2,
       "model.layer_types",
       {"no window to slide", "sliding_window: 4k"}},
      {{"model.sparse_attention={type: bigbird}",
        "model.layer_types=[full_attention, "
        "full_attention]"},
       2,
       "model.layer_types",
       {"every layer's", "sparse_attention.type: none"}},
      {{"model.sparse_attention.type=bigbird", "model.sliding_window=64"},
       2,
       "model.sparse_attention.type",
       {"a pattern of its own", "sliding_window: 0"}},
      {{"model.sparse_attention.type=dilated"},
       2,
       "model.sparse_attention.segment_lengths",
       {"0 entries", "[2k, 4k, 8k]"}},
      {{"model.sparse_attention={type: dilated, segment_lengths: [64], dilations: [1, 2]}"},
       2,
       "model.sparse_attention.segment_lengths",
       {"1 entries and dilations 2"}},
      {{"model.sparse_attention={type: dilated, segment_lengths: [64, 100], dilations: [1, 3]}"},
       2,
       "model.sparse_attention.segment_lengths",
       {"entry 2", "not a multiple of its dilation 3", "99 or 102"}},
      {{"model.sparse_attention.type=s2"},
       2,
       "model.sparse_attention.group_size",
       {"is missing", "2k"}},
      {{"model.sparse_attention={type: s2, group_size: 65}"},
       2,
       "model.sparse_attention.group_size",
       {"odd", "64 or 66"}},
      {{"model.sparse_attention={type: s2, group_size: 64}", "model.num_key_value_heads=1"},
       2,
       "model.num_key_value_heads",
       {"odd", "even number"}},
      {{"model.sparse_attention.group_size=64"},
       2,
       "model.sparse_attention.group_size",
       {"read by s2 only", "is none"}},
      {{"model.xpos_scale_base=256"}, 2, "model.xpos_scale_base", {"read by xpos only"}},
      {{"model.position=xpos", "data.documents=joined", "positions.reset_per_document=true"},
       2,
       "positions.reset_per_document",
       {"without bound", "set it to false", "data.documents: masked"}},
      {{"model.position=alibi", "model.rope.theta=500000"},
       2,
       "model.rope.theta",
       {"read by rope and xpos only"}},
      {{"model.is_causal=false"}, 2, "model.is_causal", {"next-token", "inspect attention"}},
      {{"parallel.ulysses=2"}, 2, "parallel.ulysses", {"parallel.attention is ring", "hybrid"}},
      {{"parallel.attention=ring", "parallel.invariant=true"},
       2,
       "parallel.attention",
       {"depends on the ranks", "allgather (or auto)", "invariant: false"}},
      {{"train.cuda_graphs=on", "parallel.context=1"},
       2,
       "train.cuda_graphs",
       {"device is cpu", "auto"}},
      {{"parallel.invariant=true",
        "model.sparse_attention={type: dilated, segment_lengths: [64], dilations: [2]}"},
       2,
       "model.sparse_attention.type",
       {"whole blocks", "bigbird, s2 or none"}},
      {{"parallel.ulysses=2", "parallel.attention=auto"},
       2,
       "parallel.ulysses",
       {"parallel.attention is auto", "hybrid"}},
      {{"parallel.attention=ulysses", "parallel.context=3"},
       3,
       "parallel.ulysses",
       {"3 context ranks do not divide num_attention_heads 4", "1, 2 or 4", "allgather"}},
      {{"parallel.attention=ulysses", "parallel.context=4", "parallel.ulysses=2"},
       4,
       "parallel.ulysses",
       {"takes them all", "auto: 4", "hybrid"}},
      {{"parallel.attention=hybrid", "parallel.context=4", "parallel.ulysses=3"},
       4,
       "parallel.ulysses",
       {"3 does not divide parallel.context 4", "1, 2 or 4", "ring or allgather"}},
      {{"parallel.attention=hybrid", "parallel.context=6", "parallel.ulysses=3"},
       6,
       "parallel.ulysses",
       {"3 does not divide num_attention_heads 4", "use 1 or 2"}},
      {{"parallel.attention=hybrid", "parallel.context=3"},
       3,
       "parallel.ulysses",
       {"auto finds no size", "ring or allgather"}},
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

TEST(Validate, AttentionKernel) {
  using Words = std::vector<std::string>;
  const Words cudnn = {"device=cuda", "parallel.attention_kernel=cudnn",
                       "parallel.deterministic=false"};
  const auto errors_with = [&](Words more, Words base) {
    base.insert(base.end(), more.begin(), more.end());
    return errors(check(base));
  };
  EXPECT_EQ(errors_with({}, cudnn), "");
  EXPECT_EQ(resolved({"device=cuda"}).parallel().attention_kernel(), "auto");
  EXPECT_EQ(
      resolved({"device=cuda", "parallel.attention_kernel=own"}).parallel().attention_kernel(),
      "own");
  const std::pair<const char*, const char*> refused[] = {
      {"device=cpu", "runs on GPUs, and device is cpu"},
      {"train.precision=fp32", "computes in bf16"},
      {"parallel.deterministic=true", "set parallel.deterministic: false"},
      {"model.position=alibi", "knows no alibi"},
      {"model.head_dim=36", "model.head_dim is 36"},
      {"model.sparse_attention={type: bigbird}", "no mask of bigbird"},
      {"parallel.attention=ulysses", "leaves on other ranks"},
  };
  for (const auto& [override_text, words] : refused) {
    const std::string text = errors_with({override_text}, cudnn);
    EXPECT_NE(text.find("parallel.attention_kernel: cudnn "), std::string::npos) << text;
    EXPECT_NE(text.find(words), std::string::npos) << override_text << "\n" << text;
  }
}

TEST(Validate, RepeatableOrNot) {
  const LoadResult on_cpu = check({"parallel.deterministic=false"});
  EXPECT_EQ(errors(on_cpu), "");
  EXPECT_TRUE(std::any_of(on_cpu.issues.begin(), on_cpu.issues.end(), [](const Issue& issue) {
    return issue.note && issue.key == "parallel.deterministic";
  }));
  EXPECT_NE(errors(check({"parallel.deterministic=false", "parallel.invariant=true"}))
                .find("promises more"),
            std::string::npos);
}

TEST(Validate, UnbuiltFeaturesAreRefusedByName) {
  const std::pair<const char*, const char*> cases[] = {
      {"data.packing=best_fit", "use concat"},
      {"parallel.zero=1", "use 0"},
  };
  for (const auto& [override_text, words] : cases) {
    const std::string text = errors(check({override_text}));
    EXPECT_NE(text.find("is not built yet"), std::string::npos) << override_text << "\n" << text;
    EXPECT_NE(text.find(words), std::string::npos) << override_text << "\n" << text;
    EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 2) << override_text << "\n" << text;
  }
}

TEST(Validate, MasksThatTrainingRefusesMayBeLookedAt) {
  const auto look = [](std::vector<std::string> overrides) {
    return errors(check_config(read_config(kGood, "a.yaml", overrides),
                               {.num_ranks = 2, .need_files = false, .trains = false}));
  };
  EXPECT_EQ(look({"model.is_causal=false"}), "");
  EXPECT_EQ(look({"model.is_causal=false", "model.sliding_window=64"}), "");
  const std::pair<std::vector<std::string>, const char*> cases[] = {
      {{"model.is_causal=false", "model.position=alibi"}, "model.position"},
      {{"model.is_causal=false", "model.position=xpos"}, "model.position"},
      {{"model.is_causal=false", "model.sliding_window=64", "model.attention_sinks=4"},
       "model.attention_sinks"},
      {{"model.is_causal=false", "model.sparse_attention={type: s2, group_size: 64}"},
       "model.sparse_attention.type"},
  };
  for (const auto& [overrides, key] : cases) {
    const std::string text = look(overrides);
    EXPECT_NE(text.find(std::string(key) + ":"), std::string::npos) << text;
    EXPECT_NE(text.find("is_causal: true"), std::string::npos) << text;
    EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 2) << text;
  }
}

TEST(Validate, MasksAndStrategiesThatRun) {
  const std::vector<std::string> cases[] = {
      {"model.sliding_window=64"},
      {"model.sliding_window=64", "model.attention_sinks=4"},
      {"model.sliding_window=64", "model.layer_types=[full_attention, sliding_attention]"},
      {"model.position=alibi"},
      {"model.position=none"},
      {"model.position=xpos", "model.xpos_scale_base=256", "model.rope.theta=500000"},
      {"model.sparse_attention={type: dilated, segment_lengths: [64, 128], dilations: [1, 2]}"},
      {"model.sparse_attention={type: bigbird, block_size: 32, random_blocks: 1}"},
      {"model.sparse_attention={type: s2, group_size: 1k}"},
      {"parallel.attention=allgather"},
      {"parallel.attention=ulysses"},
      {"parallel.attention=hybrid", "parallel.ulysses=2"},
      {"parallel.layout=striped"},
      {"parallel.layout=balanced"},
  };
  for (const std::vector<std::string>& overrides : cases)
    EXPECT_EQ(errors(check(overrides)), "") << overrides[0];
}

TEST(Validate, AWindowThatNoLayerReadsIsANote) {
  const LoadResult result =
      check({"model.sliding_window=64", "model.layer_types=[full_attention, full_attention]"});
  EXPECT_EQ(errors(result), "");
  std::string notes;
  for (const Issue& issue : result.issues) notes += to_text(issue) + "\n";
  EXPECT_NE(notes.find("layer_types has none"), std::string::npos) << notes;
}

TEST(Validate, WindowsThatAreNoNumberOfTokens) {
  for (const char* value : {"-1", "-4k", "1.5", "wide"}) {
    const std::string text = errors(check({std::string("model.sliding_window=") + value}));
    EXPECT_NE(text.find("model.sliding_window:"), std::string::npos) << text;
  }
  EXPECT_NE(errors(check({"model.sliding_window=-1"})).find("0: no window"), std::string::npos);
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

// config.resolved.yaml starts the same run again, though it names the defaults of every key.
TEST(Validate, AResolvedConfigurationIsValid) {
  const RunConfig first = resolved({});
  const LoadResult again = check_config(read_config(to_yaml(first), "resolved.yaml", {}),
                                        {.num_ranks = 2, .need_files = false});
  EXPECT_EQ(errors(again), "");
  EXPECT_EQ(to_yaml(again.loaded.config), to_yaml(first));
}

}  // namespace
}  // namespace farspan
