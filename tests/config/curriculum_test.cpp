#include "config/curriculum.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "config/validate.h"

namespace farspan {
namespace {

constexpr const char* kBase = R"(name: t
model:
  vocab_size: 260
  hidden_size: 128
  intermediate_size: 352
  num_hidden_layers: 2
  num_attention_heads: 4
  num_key_value_heads: 2
  rope: {theta: 10000, scaling: {type: yarn, original_context: 1k, factor: 4}}
data: {train: [{path: a.h5}], validation: b.h5}
train: {batch_tokens: 16k}
)";

LoadResult check(std::vector<std::string> overrides, int ranks = 2) {
  return check_config(read_config(kBase, "a.yaml", overrides),
                      {.num_ranks = ranks, .need_files = false});
}

std::string errors(const LoadResult& result) {
  std::string out;
  for (const Issue& issue : result.issues)
    if (!issue.note) out += to_text(issue) + "\n";
  return out;
}

std::vector<StagePlan> plan(std::vector<std::string> overrides, int ranks = 2) {
  const LoadResult result = check(std::move(overrides), ranks);
  EXPECT_EQ(errors(result), "");
  return plan_stages(result.loaded.config);
}

std::vector<std::int64_t> lengths_of(const std::vector<StagePlan>& stages) {
  std::vector<std::int64_t> out;
  for (const StagePlan& stage : stages) out.push_back(stage.config.train().sequence_length());
  return out;
}

std::vector<std::int64_t> steps_of(const std::vector<StagePlan>& stages) {
  std::vector<std::int64_t> out;
  for (const StagePlan& stage : stages) out.push_back(stage.steps);
  return out;
}

using Numbers = std::vector<std::int64_t>;

TEST(Curriculum, FixedIsOneStage) {
  const auto stages = plan({"train.steps=100", "train.sequence_length=2k"});
  ASSERT_EQ(stages.size(), 1U);
  EXPECT_EQ(stages[0].steps, 100);
  EXPECT_EQ(stages[0].config.train().sequence_length(), 2048);
}

TEST(Curriculum, DoublingWithEqualShares) {
  const auto stages =
      plan({"train.steps=100", "curriculum={type: growlength, min_length: 256, max_length: 1k}"});
  EXPECT_EQ(lengths_of(stages), (Numbers{256, 512, 1024}));
  EXPECT_EQ(steps_of(stages), (Numbers{33, 33, 34}));
  EXPECT_EQ(stages[2].first_step, 66);
  EXPECT_EQ(stage_at(stages, 65), 1U);
  EXPECT_EQ(stage_at(stages, 66), 2U);
  EXPECT_EQ(stage_at(stages, 1000), 2U);
  // Tokens per step and per pass stay, so sequences scale inversely.
  EXPECT_EQ(stages[0].config.train().batch_tokens(), 16384);
  EXPECT_EQ(stages[0].config.train().micro_batch(), 64);
  EXPECT_EQ(stages[2].config.train().micro_batch(), 16);
}

TEST(Curriculum, BudgetsAndShares) {
  const char* listed =
      "curriculum={type: growlength, stages: [{sequence_length: 256, tokens: 100k}, "
      "{sequence_length: 512, steps: 5}, {sequence_length: 1k}]}";
  EXPECT_EQ(steps_of(plan({listed, "train.steps=20"})), (Numbers{7, 5, 8}));
  const auto summed = check({listed, "curriculum.stages[2].steps=3"});
  EXPECT_EQ(errors(summed), "");
  EXPECT_EQ(summed.loaded.config.train().steps(), 15);
  EXPECT_EQ(summed.loaded.config.train().sequence_length(), 1024);
  EXPECT_NE(errors(check({listed})).find("train.steps: is missing"), std::string::npos);
  EXPECT_NE(errors(check({"curriculum={type: growlength, min_length: 256}", "train.steps=2"}))
                .find("leaves too little"),
            std::string::npos);
  EXPECT_NE(
      errors(check({"curriculum={type: growlength, stages: [{sequence_length: 128, steps: 4}, "
                    "{sequence_length: 512}, {sequence_length: 1k}]}",
                    "train.steps=5"}))
          .find("5 steps, and the stages add up to 4, which leaves too little"),
      std::string::npos);
  EXPECT_NE(errors(check({listed, "train.steps=12"})).find("add up to 12, which leaves too little"),
            std::string::npos);
  EXPECT_NE(errors(check({listed, "curriculum.stages[2].steps=3", "train.steps=20"}))
                .find("20 steps, and the stages add up to 15"),
            std::string::npos);
}

TEST(Curriculum, CyclesShareEqually) {
  const auto stages = plan({"train.steps=101",
                            "curriculum={type: cyclic, min_length: 256, "
                            "max_length: 1k, cycles: 3}"});
  ASSERT_EQ(stages.size(), 9U);
  EXPECT_EQ(lengths_of(stages), (Numbers{256, 512, 1024, 256, 512, 1024, 256, 512, 1024}));
  std::int64_t step = 0;
  for (const StagePlan& stage : stages) {
    EXPECT_EQ(stage.first_step, step);
    EXPECT_TRUE(stage.steps == 11 || stage.steps == 12) << stage.steps;
    step = stage.end();
  }
  EXPECT_EQ(step, 101);
  EXPECT_EQ(distinct_stages(stages).examples, (std::vector<std::size_t>{0, 1, 2}));
  EXPECT_EQ(distinct_stages(stages).of_stage[5], 2U);
}

// One mistake, one error: the misspelt budget, not also that a budget is missing.
TEST(Curriculum, MisspeltBudgetOfAStage) {
  const std::string typo =
      errors(check({"curriculum={type: growlength, stages: [{sequence_length: 512, stpes: 4}, "
                    "{sequence_length: 1k, steps: 4}]}"}));
  EXPECT_NE(typo.find("stages[0].stpes: unknown key"), std::string::npos) << typo;
  EXPECT_EQ(typo.find("train.steps"), std::string::npos) << typo;
  const std::string missing = errors(check(
      {"curriculum={type: growlength, stages: [{sequence_length: 512}, {sequence_length: 1k}]}"}));
  EXPECT_NE(missing.find("train.steps: is missing"), std::string::npos) << missing;
  EXPECT_EQ(missing.find("train.steps: is missing"), missing.rfind("train.steps: is missing"));
}

TEST(Curriculum, WindowNeedsSteps) {
  const auto with = [](const char* steps) {
    return errors(check({"train.steps=1000", "train.sequence_length=2k",
                         fmt::format("curriculum={{type: window, window_steps: {}}}", steps)}));
  };
  EXPECT_NE(with("0").find("curriculum.window_steps: 0 steps"), std::string::npos) << with("0");
  EXPECT_EQ(with("1"), "");
}

TEST(Curriculum, WindowGrowsToTheLength) {
  for (const char* growth : {"linear", "sine", "exponential"}) {
    const auto stages = plan({"train.steps=1000", "train.sequence_length=2k",
                              std::string("curriculum={type: window, growth: ") + growth + "}"});
    ASSERT_GT(stages.size(), 10U) << growth;
    ASSERT_LE(stages.size(), 33U) << growth;
    EXPECT_EQ(stages.front().window, 32);
    EXPECT_EQ(stages.front().first_step, 0);
    EXPECT_EQ(stages.back().window, 0) << "all of a document";
    EXPECT_EQ(stages.back().first_step, 600);
    EXPECT_EQ(stages.back().end(), 1000);
    for (std::size_t i = 1; i + 1 < stages.size(); ++i) {
      const auto x = static_cast<double>(stages[i].first_step) / 600;
      const double now = growth[0] == 'l'   ? 32 + 2016 * x
                         : growth[0] == 's' ? 32 + 2016 * std::sin(std::acos(-1.0) / 2 * x)
                                            : 32 * std::pow(64.0, x);
      EXPECT_EQ(stages[i].first_step, stages[i - 1].end());
      EXPECT_EQ(stages[i].window % 64, 0);
      EXPECT_LE(static_cast<double>(stages[i].window), now + 1e-9) << growth << " " << i;
      EXPECT_GT(static_cast<double>(stages[i].window) + 64 + 2016.0 / 100, now) << growth << i;
    }
  }
  const std::pair<std::vector<std::string>, const char*> cases[] = {
      {{"model.sliding_window=512"}, "curriculum.type: window cuts documents"},
      {{"curriculum.initial_window=4k"}, "curriculum.initial_window: 4096 is above"},
      {{"positions={sampler: pose, target_context: 8k}"}, "curriculum.type: window keeps tokens"},
  };
  for (auto [overrides, words] : cases) {
    overrides.insert(overrides.end(),
                     {"train.steps=10", "train.sequence_length=2k", "curriculum.type=window"});
    const std::string text = errors(check(overrides));
    EXPECT_NE(text.find(words), std::string::npos) << words << "\n" << text;
  }
}

TEST(Curriculum, AStageThatEndsEarlyMovesTheRest) {
  auto stages =
      plan({"curriculum={type: gated, gate: {every: 5}, stages: [{sequence_length: 512, "
            "steps: 20}, {sequence_length: 1k, steps: 30}, {sequence_length: 2k, steps: "
            "10}]}"});
  EXPECT_EQ(steps_of(stages), (Numbers{20, 30, 10}));
  end_stage(stages, 0, 10);
  EXPECT_EQ(stages[1].first_step, 10);
  end_stage(stages, 1, 5);
  EXPECT_EQ(stages[2].first_step, 15);
  EXPECT_EQ(stages.back().end(), 25);
  EXPECT_NE(errors(check({"curriculum.type=gated"})).find("curriculum.stages: is missing"),
            std::string::npos);
  EXPECT_NE(errors(check({"curriculum={type: gated, stages: [{sequence_length: 512, steps: 2}]}",
                          "data.validation=null"}))
                .find("data.validation: is missing, and gated"),
            std::string::npos);
}

TEST(Curriculum, StagesChangeWhatTheySay) {
  const auto stages = plan(
      {"train.micro_batch=2", "data.train=[{path: a.h5, weight: 3}, b.h5]",
       "curriculum={type: growlength, stages: [{sequence_length: 512, steps: 2, parallel: {data: "
       "2}, lr_factor: 0.5, sliding_window: 128}, {sequence_length: 2k, steps: 3, micro_batch: 4, "
       "parallel: {context: 2, attention: ulysses}, rope: {theta: 5e5, scaling: {type: yarn, "
       "original_context: 1k, factor: 8}}, positions: {sampler: pose, target_context: 8k}, train: "
       "[c.h5]}]}"});
  ASSERT_EQ(stages.size(), 2U);
  const RunConfig& a = stages[0].config;
  const RunConfig& b = stages[1].config;
  EXPECT_EQ(a.parallel().data(), 2);
  EXPECT_EQ(a.parallel().context(), 1);
  EXPECT_EQ(a.parallel().ulysses(), 1);
  EXPECT_EQ(b.parallel().data(), 1);
  EXPECT_EQ(b.parallel().ulysses(), 2);
  EXPECT_EQ(a.train().micro_batch(), 8) << "2 of 2048 tokens";
  EXPECT_EQ(b.train().micro_batch(), 4);
  EXPECT_EQ(stages[0].lr_factor, 0.5);
  EXPECT_EQ(a.model().sliding_window(), 128);
  EXPECT_EQ(b.model().sliding_window(), 0);
  EXPECT_EQ(a.model().rope().theta(), 10000);
  EXPECT_EQ(a.model().rope().scaling().target_context(), 4096);
  EXPECT_EQ(b.model().rope().theta(), 5e5);
  EXPECT_EQ(b.model().rope().scaling().target_context(), 8192);
  EXPECT_EQ(a.positions().sampler(), "sequential");
  EXPECT_EQ(b.positions().original_context(), 2048);
  EXPECT_EQ(a.data().train_size(), 2);
  EXPECT_EQ(b.data().train(0).path(), "c.h5");
  EXPECT_EQ(a.train().steps(), 5);
}

// config.resolved.yaml runs the same job.
TEST(Curriculum, ResolvedRunsTheSame) {
  for (const char* curriculum :
       {"curriculum={type: growlength, min_length: 256, max_length: 2k}",
        "curriculum={type: window, growth: sine}",
        "curriculum={type: cyclic, min_length: 512, max_length: 2k, cycles: 2}",
        "curriculum={type: growlength, stages: [{sequence_length: 512, tokens: 40k, parallel: "
        "{data: 2}, positions: {sampler: pose, target_context: 4k}}, {parallel: {attention: "
        "allgather}, rope: {scaling: {type: yarn, original_context: 1k, factor: 8}}}]}"}) {
    const LoadResult first =
        check({"train.steps=30", "train.sequence_length=2k", curriculum, "schedule.warmup=10%"});
    ASSERT_EQ(errors(first), "") << curriculum;
    const std::string yaml = to_yaml(first.loaded.config);
    const LoadResult again =
        check_config(read_config(yaml, "b.yaml", {}), {.num_ranks = 2, .need_files = false});
    ASSERT_EQ(errors(again), "") << yaml;
    EXPECT_EQ(to_yaml(again.loaded.config), yaml);
    const auto before = plan_stages(first.loaded.config), after = plan_stages(again.loaded.config);
    ASSERT_EQ(before.size(), after.size());
    for (std::size_t i = 0; i < before.size(); ++i) {
      EXPECT_EQ(to_yaml(before[i].config), to_yaml(after[i].config));
      EXPECT_EQ(before[i].first_step, after[i].first_step);
    }
  }
}

TEST(Curriculum, BadInputIsNamed) {
  const auto stages = [](const std::string& list) {
    return "curriculum={type: growlength, stages: [" + list + "]}";
  };
  struct Case {
    std::vector<std::string> overrides;
    const char* words;
    int ranks = 2;
  };
  const std::vector<Case> cases = {
      {{stages("{sequence_length: 512, steps: 2}, {sequence_length: 3000, steps: 2}")},
       "train.batch_tokens: 16384 is not a multiple of sequence_length x data ranks, 3000 x 1 "
       "(stage 1)\n      fix: use 192000, a multiple of every stage's, or lengths that divide"},
      {{stages(
           "{sequence_length: 512, steps: 2, parallel: {data: 2}}, {sequence_length: 768, steps: "
           "2}, {sequence_length: 1280, steps: 2}")},
       "768 x 1 (stage 1), 1280 x 1 (stage 2)\n      fix: use 15360 or 30720, a multiple of every"},
      {{stages(
           "{sequence_length: 512, steps: 2, parallel: {data: 3}}, {sequence_length: 1k, steps: "
           "2}")},
       "or set curriculum.stages[0].parallel.data=1 curriculum.stages[0].parallel.context=2"},
      {{stages(
           "{sequence_length: 512, steps: 2, parallel: {data: 3}}, {sequence_length: 1k, steps: "
           "2, parallel: {data: 3}}")},
       "or set curriculum.stages[1].parallel.data=1 curriculum.stages[1].parallel.context=2"},
      {{stages("{sequence_length: 512, steps: 2}, {sequence_length: 1k, steps: 2}"),
        "parallel.data=3"},
       "parallel.context: 2 ranks do not fit a mesh of data 3 x context auto\n      fix: start a "
       "multiple of 3 ranks (mpirun -np 3 farspan ..., or --local-ranks 3), or set "
       "parallel.data=1"},
      {{stages("{sequence_length: 64, steps: 2}, {sequence_length: 512, steps: 2}")},
       "curriculum.stages[0].sequence_length: 64 tokens on 2 context ranks are 32 each, less than"},
      {{stages("{sequence_length: 512, steps: 2, parallel: {data: 2, context: 2}}, "
               "{sequence_length: 1k, steps: 2}")},
       "curriculum.stages[0].parallel.context: 2 ranks do not fit a mesh of data 2 x context 2"},
      {{stages("{sequence_length: 512, steps: 2}, {sequence_length: 1k, steps: 2, parallel: "
               "{context: 3}}")},
       "curriculum.stages[1].parallel.context: 2 ranks do not fit"},
      {{stages("{sequence_length: 512, steps: 2, tokens: 5}, {steps: 1}")},
       "curriculum.stages[0].tokens: steps 2 is given too"},
      {{stages("{sequence_length: 512, steps: 2, parallel: {invariant: true, attention: "
               "allgather}}, {sequence_length: 1k, steps: 2}")},
       "curriculum.stages[0].parallel.invariant: true differs from the run's false"},
      {{stages(
           "{sequence_length: 512, steps: 2, micro_batch: 5}, {sequence_length: 1k, steps: 2}")},
       "curriculum.stages[0].micro_batch: 5 does not divide"},
      {{stages("{sequence_length: 512, steps: 2}, {sequence_length: 2k, steps: 2}"),
        "positions={sampler: pose, original_context: 1k, target_context: 4k}"},
       "curriculum.stages[1].sequence_length: 2048 tokens are more than "
       "positions.original_context"},
      {{stages("{sequence_length: 512, steps: 2}"), "train.sequence_length=1k"},
       "train.sequence_length: 1024 is not the longest stage's"},
      {{stages("{sequence_length: 512, steps: 2, parallel: {zero: 1}}, {steps: 2}")},
       "curriculum.stages[0].parallel.zero: 1 is not built yet"},
      {{"train.steps=9", "curriculum={type: growlength, min_length: 300, max_length: 1k}"},
       "curriculum.max_length: 1024 is not curriculum.min_length 300 doubled"},
      {{"train.steps=9", "curriculum={type: growlength, min_length: 2k, max_length: 1k}"},
       "curriculum.max_length: 1024 is below curriculum.min_length 2048"},
      {{"train.steps=9", "curriculum.type=growlength"}, "curriculum.min_length: is missing"},
      {{"train.steps=5", "curriculum={type: cyclic, min_length: 256, max_length: 1k, cycles: 2}"},
       "curriculum.cycles: 2 cycles of 3 lengths are 6 stages, and train.steps is 5"},
      {{"train.steps=5", "curriculum={min_length: 256}"},
       "curriculum.min_length: is read by growlength and cyclic only"},
  };
  for (const Case& c : cases) {
    const std::string text = errors(check(c.overrides, c.ranks));
    EXPECT_NE(text.find(c.words), std::string::npos) << c.words << "\n" << text;
  }
  // Once for all stages; and nothing about the defaults of a run whose stages are not known.
  for (const auto& overrides : std::vector<std::vector<std::string>>{
           {stages("{sequence_length: 512, steps: 2}, {sequence_length: 768, steps: 2}, "
                   "{sequence_length: 1280, steps: 2}")},
           {"train.steps=9", "train.batch_tokens=1000",
            "curriculum={type: cyclic, min_length: 96, max_length: 500}"},
           {"train.steps=9", "train.batch_tokens=1000",
            "curriculum={type: growlength, min_length: 96, max_length: 500}"}}) {
    const std::string only = errors(check(overrides));
    EXPECT_EQ(std::count(only.begin(), only.end(), '\n'), 2) << only;
  }
  // What all stages have in common is said once.
  const std::string text =
      errors(check({stages("{sequence_length: 512, steps: 2}, {sequence_length: 1k, steps: 2}"),
                    "model.num_key_value_heads=3"}));
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 2) << text;
}

TEST(Curriculum, RanksThatStagesAskFor) {
  const LoadResult read =
      read_config(kBase, "a.yaml",
                  std::vector<std::string>{
                      "curriculum={type: growlength, stages: [{sequence_length: 512, steps: "
                      "1, parallel: {data: 4}}, {sequence_length: 1k, steps: 1}]}"});
  EXPECT_EQ(natural_ranks(read.loaded.config), 4);
}

// Stages that have trained stay; later ones, layouts and the present one's end may change.
TEST(Curriculum, WhatMayChangeOnResume) {
  const auto config = [](const std::string& list) {
    const LoadResult result = check({"curriculum={type: growlength, stages: [" + list + "]}"});
    EXPECT_EQ(errors(result), "") << list;
    return result.loaded.config;
  };
  const std::string first = "{sequence_length: 512, steps: 4}, ";
  const RunConfig saved = config(first + "{sequence_length: 1k, steps: 6}");
  const auto conflicts = [&](const std::string& list, const Numbers& done) {
    std::string out;
    for (const std::string& c : resume_conflicts(saved, config(list), done)) out += c + "\n";
    return out;
  };
  const Numbers done = {4, 2};
  EXPECT_EQ(conflicts(first + "{sequence_length: 1k, steps: 6}", done), "");
  EXPECT_EQ(conflicts(first + "{sequence_length: 1k, steps: 60}", done), "");
  EXPECT_EQ(
      conflicts(first + "{sequence_length: 1k, steps: 2}, {sequence_length: 2k, steps: 9}", done),
      "");
  EXPECT_EQ(
      conflicts("{sequence_length: 512, steps: 4, parallel: {data: 2}}, {sequence_length: 1k, "
                "steps: 6, micro_batch: 1}",
                done),
      "");
  EXPECT_NE(
      conflicts(first + "{sequence_length: 1k, steps: 1}", done).find("its steps: 2 done, 1 now"),
      std::string::npos);
  EXPECT_NE(conflicts("{sequence_length: 512, steps: 5}, {sequence_length: 1k, steps: 6}", done)
                .find("stage 0 of the curriculum, its steps: 4 done, 5 now"),
            std::string::npos);
  EXPECT_NE(conflicts(first + "{sequence_length: 2k, steps: 6}", done)
                .find("train.sequence_length: 1024 in the saved run, 2048 now"),
            std::string::npos);
  // More steps move stages that share them: it is said that they did, and what to do.
  const auto moved = [&](const std::string& curriculum) {
    const auto with_steps = [&](const char* steps) {
      const LoadResult result = check({"curriculum=" + curriculum, steps});
      EXPECT_EQ(errors(result), "");
      return result.loaded.config;
    };
    std::string out;
    for (const std::string& c :
         resume_conflicts(with_steps("train.steps=12"), with_steps("train.steps=24"), {6, 6}))
      out += c + "\n";
    return out;
  };
  const std::pair<const char*, const char*> shares[] = {
      {"{type: growlength, min_length: 512, max_length: 1k}",
       "stage 0 of the curriculum, its steps: 6 done, 12 now\ntrain.steps: 12 in the saved run, 24 "
       "now, and stages without steps of their own share it equally, also those that are over: to "
       "change it list the stages with their steps, as config.resolved.yaml of the saved run does "
       "(train that with train.steps=null and another curriculum.stages[1].steps)\n"},
      {"{type: cyclic, min_length: 512, max_length: 1k, cycles: 1}",
       "the stages of cyclic share it equally, also those that are over"},
      {"{type: window}", "give the saved run's, curriculum.window_steps=7\n"},
  };
  for (const auto& [curriculum, words] : shares) {
    const std::string text = moved(curriculum);
    EXPECT_NE(text.find(words), std::string::npos) << words << "\n" << text;
  }
  EXPECT_EQ(conflicts("{sequence_length: 512, steps: 9}", {4}).find("train.steps"),
            std::string::npos);
  // Not begun: free.
  EXPECT_EQ(conflicts(first + "{sequence_length: 2k, steps: 6}", {4, 0}), "");
  EXPECT_EQ(conflicts("{sequence_length: 512, steps: 2}, {sequence_length: 2k, steps: 6}", {1}),
            "");
}

}  // namespace
}  // namespace farspan
