// The stages of a run: which length, layout, data and rates hold at which optimizer step. A pure
// function of the resolved configuration, so that every rank and every start of a run agree.
//
//   const std::vector<StagePlan> stages = plan_stages(config);
//   const StagePlan& now = stages[stage_at(stages, step)];
//   now.config.train().sequence_length();          // a whole configuration, as without curriculum
//
// Kinds (docs/curricula.md): growlength (GrowLength, arXiv 2310.00576), window (SkyLadder, arXiv
// 2503.15450), cyclic (Grow-P2, as OLMo-core has it), gated (Llama 3, arXiv 2407.21783, 3.4.2).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "config/load.h"

namespace farspan {

struct StagePlan {
  int index = 0;
  std::int64_t first_step = 0;  // of the run
  std::int64_t steps = 0;       // gated: at most
  double lr_factor = 1.0;       // multiplies the schedule's rate
  std::int64_t window = 0;  // documents are cut into pieces of this many tokens; 0: they are not
  int entry = -1;           // of curriculum.stages; -1: none
  RunConfig config;         // resolved, without a curriculum; train.steps is the whole run's
  std::int64_t end() const { return first_step + steps; }
};

// Whether curriculum.stages says what happens: growlength, cyclic (its stages are one cycle),
// gated.
bool has_stages(const RunConfig& config);

// What `config` is during a stage, before or after it is resolved. A stage that gives data or
// context leaves the other to the ranks; rope.scaling and positions of a stage replace the whole
// section.
RunConfig with_stage(const RunConfig& config, const config::Stage& stage);

// The stages of a resolved and valid configuration, in order; at least one.
std::vector<StagePlan> plan_stages(const RunConfig& config);

// The stage of optimizer step `step` (0 is the first); past the end the last one.
std::size_t stage_at(const std::vector<StagePlan>& stages, std::int64_t step);

// Ends a stage after `steps` steps, fewer than planned: those after it begin earlier (gated).
void end_stage(std::vector<StagePlan>& stages, std::size_t stage, std::int64_t steps);

// The stages whose configurations differ in what a pass or a model depends on: an index into
// `stages` of one of each, and for each stage which of those. Cycles repeat their stages.
struct DistinctStages {
  std::vector<std::size_t> examples;
  std::vector<std::size_t> of_stage;
};
DistinctStages distinct_stages(const std::vector<StagePlan>& stages);

// How many stages have begun to train, the first always, given the steps done in each
// (io::TrainState::stage_steps).
std::size_t stages_trained(const std::vector<std::int64_t>& stage_steps);

// The configuration of the last stage that has trained, at the longest length that has, given the
// steps done in each stage (empty: the first): the model as a checkpoint holds it.
RunConfig trained_config(const RunConfig& config, const std::vector<std::int64_t>& stage_steps);

// One line for each stage: steps, length, tokens, layout, and what else differs from the one
// before.
std::vector<std::string> stage_lines(const std::vector<StagePlan>& stages);
// "1024 tokens, data 1 x context 2, micro_batch 4".
std::string stage_text(const StagePlan& stage);

}  // namespace farspan
