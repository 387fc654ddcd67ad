#include <algorithm>

#include "comm/agree.h"
#include "train/training_run.h"

namespace farspan {

// Before the first step: ranks split off a mesh together, and what each stage needs is known then.
std::vector<const Mesh*> TrainingRun::make_meshes() {
  Communicator& world = transport_.world(world_);
  std::vector<const Mesh*> out;
  for (const StagePlan& stage : stages_) {
    const config::Parallel& parallel = stage.config.parallel();
    const auto same = [&](const std::unique_ptr<Mesh>& mesh) {
      const ContextPlace place = mesh->place();
      return mesh->data_size() == parallel.data() && mesh->context_size() == parallel.context() &&
             place.ulysses_size == std::max<std::int64_t>(parallel.ulysses(), 1);
    };
    auto found = std::find_if(meshes_.begin(), meshes_.end(), same);
    if (found == meshes_.end())
      found = meshes_.insert(meshes_.end(), std::make_unique<Mesh>(make_mesh(stage.config, world)));
    out.push_back(found->get());
  }
  return out;
}

void TrainingRun::log_stages() {
  constexpr std::size_t kMostShown = 16;
  const std::vector<std::string> lines = stage_lines(stages_);
  for (std::size_t i = 0; i < std::min(lines.size(), kMostShown); ++i) log_.info("{}", lines[i]);
  if (lines.size() > kMostShown) log_.info("... and {} more stages", lines.size() - kMostShown);
}

// Weights and moments stay where they are: every rank holds them all, whatever the layout.
void TrainingRun::enter_stage(std::size_t next) {
  if (next == stage_) return;
  stage_ = next;
  together(world_, [&] {
    data_->enter_stage(next);
    engine_->enter_stage(stage().config, mesh());
  });
}

void TrainingRun::enter_stage_if_due() {
  const std::size_t next = stage_at(stages_, step_);
  if (next == stage_) return;
  auto section = watchdog_.enter(Phase::kInit, step_);
  const StagePlan before = stage();
  enter_stage(next);
  const std::string text =
      fmt::format("stage {} after step {} and {} tokens: sequences of {} -> {}", stage().index,
                  step_, tokens_, stage_text(before), stage_text(stage()));
  log_.info("{}", text);
  if (lead_) reports_->switched(step_, text);
}

std::vector<std::int64_t> TrainingRun::stage_steps() const {
  std::vector<std::int64_t> out;
  for (std::size_t i = 0; i <= stage_at(stages_, step_); ++i)
    out.push_back(std::min(step_ - stages_[i].first_step, stages_[i].steps));
  // Nothing else says that the gate of the last stage has opened.
  if (config_.curriculum().type() == "gated" && step_ == steps_) out.push_back(0);
  return out;
}

}  // namespace farspan
