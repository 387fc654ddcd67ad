#include <algorithm>
#include <cmath>

#include "comm/agree.h"
#include "train/retrieval.h"
#include "train/training_run.h"

namespace farspan {

// Held-out loss in sequences of the first stage's length, on the layout at hand.
double TrainingRun::short_loss() {
  config::RunConfig config = stage().config;
  config::Train& train = *config.mutable_train();
  const std::int64_t length = stages_.front().config.train().sequence_length();
  const std::int64_t tokens = train.sequence_length() * train.micro_batch();
  train.set_sequence_length(length);
  train.set_micro_batch(std::max<std::int64_t>(1, tokens / length));
  together(world_, [&] { data_->evaluate_as(config, mesh()); });
  const double loss = held_out().loss();
  together(world_, [&] { data_->enter_stage(stage_); });
  return loss;
}

double TrainingRun::retrieval(std::int64_t length) {
  const config::EvalPasskey& passkey = config_.evaluation().passkey();
  return passkey_accuracy(*live_model(), TaskVocabulary::of(data_->tokenizer()), length,
                          passkey.depths(), passkey.samples(), config_.seed());
}

// Llama 3 (arXiv 2407.21783, section 3.4.2): the next length comes when short sequences have
// recovered and needles are found at this one. A stage that has spent its budget ends as well.
void TrainingRun::look_at_gate() {
  const config::Gate& gate = config_.curriculum().gate();
  const std::int64_t done = step_ - stage().first_step;
  const bool spent = step_ == stage().end();
  if (done % gate.every() != 0 && !spent) return;
  auto section = watchdog_.enter(Phase::kEval, step_);
  const auto length = stage().config.train().sequence_length();
  const double loss = short_loss(), found = retrieval(length);
  const bool recovered = !std::isfinite(gate_loss_) || loss <= gate_loss_ + gate.recovery();
  // Rank 0's word, so that no rounding can part the ranks.
  std::int64_t open = recovered && found >= gate.retrieval() ? 1 : 0;
  world_.broadcast(host_tensor(&open, {1}), 0, backend_->stream()).wait();
  if (lead_) {
    const auto row = [&](const char* name, double value, std::int64_t at) {
      reports_->evaluation({.step = step_,
                            .name = name,
                            .value = value,
                            .extras = {{"sequence_length", static_cast<double>(at)}}});
    };
    row("gate/loss", loss, stages_.front().config.train().sequence_length());
    row("gate/retrieval", found, length);
    row("gate/open", static_cast<double>(open), length);
  }
  const std::string found_text = fmt::format(
      "gate of stage {} after {} steps: loss of short sequences {:.4f}{}, {:.0f}% of "
      "passkeys found at {} tokens",
      stage().index, done, loss,
      std::isfinite(gate_loss_) ? fmt::format(" (before: {:.4f})", gate_loss_) : "", 100 * found,
      length);
  if (open == 0 && !spent) return log_.info("{}: closed", found_text);
  if (open == 0)
    log_.warn("{}: closed, and the stage's budget is spent: going on", found_text);
  else
    log_.info("{}: open", found_text);
  gate_loss_ = loss;
  if (!spent) finish_stage();
}

// The present stage ends here, before its budget does.
void TrainingRun::finish_stage() {
  const std::int64_t done = step_ - stage().first_step;
  end_stage(stages_, stage_, done);
  steps_ = stages_.back().end();
  together(world_, [&] { data_->end_stage(stage_, done); });
  if (step_ < steps_) data_->start(step_);
}

// Stages that a gate ended in an earlier start of the run.
void TrainingRun::restore_stages(const std::vector<std::int64_t>& done) {
  for (std::size_t i = 0; i + 1 < done.size() && i < stages_.size(); ++i) {
    end_stage(stages_, i, done[i]);
    data_->end_stage(i, done[i]);
  }
  steps_ = stages_.back().end();
}

}  // namespace farspan
