#include "comm/agree.h"
#include "train/perplexity.h"
#include "train/retrieval.h"
#include "train/training_run.h"

namespace farspan {

void TrainingRun::evaluate() {
  auto section = watchdog_.enter(Phase::kEval, step_);
  if (data_->has_validation()) evaluate_loss();
  const config::Evaluation& evaluation = config_.evaluation();
  for (const std::int64_t length : evaluation.passkey().lengths()) evaluate_passkey(length);
  for (const std::int64_t length : evaluation.perplexity().lengths()) evaluate_perplexity(length);
}

EvalResult TrainingRun::held_out() {
  for (std::int64_t i = 0; i < data_->num_evaluation_batches(); ++i) {
    MicroBatch micro;
    together(world_, [&] {
      micro = data_->evaluation_batch(i);
      reserve(micro.memory);
    });
    engine_->evaluate(micro);
  }
  return engine_->read_evaluation();
}

void TrainingRun::evaluate_loss() {
  const auto begin = std::chrono::steady_clock::now();
  const EvalResult result = held_out();
  if (!lead_) return;
  EvalRow row{.step = step_,
              .name = "loss",
              .value = result.loss(),
              .extras = {{"tokens", result.valid_tokens},
                         {"sequence_length", stage().config.train().sequence_length()},
                         {"seconds", seconds_since(begin)}}};
  if (stage().window > 0) row.extras.emplace_back("window", static_cast<double>(stage().window));
  reports_->evaluation(row);
  log_.info("step {}: held-out loss {:.4f} nats per token ({:.0f} tokens)", step_, row.value,
            result.valid_tokens);
}

std::unique_ptr<ScoringModel> TrainingRun::live_model() {
  return scoring_model(LiveModel{.config = stage().config,
                                 .engine = *engine_,
                                 .mesh = mesh(),
                                 .hosts = world_,
                                 .sizes = sizes_,
                                 .reserve = [this](const PassMemory& memory) { reserve(memory); }});
}

void TrainingRun::evaluate_passkey(std::int64_t length) {
  const auto begin = std::chrono::steady_clock::now();
  const config::EvalPasskey& passkey = config_.evaluation().passkey();
  const RetrievalResult result = score_retrieval(*live_model(), passkey_grid(length));
  if (!lead_) return;
  const RetrievalCell cell = result.of_length(0);
  const EvalRow row{.step = step_,
                    .name = fmt::format("passkey@{}", length),
                    .value = cell.accuracy(),
                    .extras = {{"documents", static_cast<double>(cell.documents)},
                               {"depths", static_cast<double>(passkey.depths())},
                               {"answer_nll", cell.nll()},
                               {"seconds", seconds_since(begin)}}};
  reports_->evaluation(row);
  log_.info("step {}: {} of {} passkeys found in {} tokens", step_, cell.right, cell.documents,
            length);
}

TaskGrid TrainingRun::passkey_grid(std::int64_t length) const {
  const config::EvalPasskey& passkey = config_.evaluation().passkey();
  return {.task = TaskKind::kPasskey,
          .lengths = {length},
          .depths = passkey.depths(),
          .samples = passkey.samples(),
          .seed = config_.seed(),
          .vocabulary = TaskVocabulary::of(data_->tokenizer())};
}

void TrainingRun::evaluate_perplexity(std::int64_t length) {
  const auto begin = std::chrono::steady_clock::now();
  const ScoredSpan span = scored_span(data_->validation(), perplexity_lengths(), /*stride=*/0,
                                      config_.evaluation().tokens());
  const WindowScores scores = score_windows(
      *live_model(), data_->validation(),
      {.length = length, .stride = length, .first = span.first, .tokens = span.tokens});
  if (!lead_) return;
  const EvalRow row{.step = step_,
                    .name = fmt::format("perplexity@{}", length),
                    .value = scores.perplexity(),
                    .extras = {{"loss", scores.mean()},
                               {"tokens", static_cast<double>(scores.scored())},
                               {"seconds", seconds_since(begin)}}};
  reports_->evaluation(row);
  log_.info("step {}: perplexity {:.4f} in windows of {} ({} tokens)", step_, row.value, length,
            scores.scored());
}

// What can only be seen with the data at hand; before the first step, so that no run fails late.
void TrainingRun::check_evaluation() const {
  const config::Evaluation& evaluation = config_.evaluation();
  for (const std::int64_t length : evaluation.passkey().lengths()) passkey_grid(length).document(0);
  if (config_.curriculum().type() == "gated")
    for (const StagePlan& stage : stages_)
      passkey_grid(stage.config.train().sequence_length()).document(0);
  if (evaluation.perplexity().lengths_size() > 0)
    scored_span(data_->validation(), perplexity_lengths(), 0, evaluation.tokens());
}

std::vector<std::int64_t> TrainingRun::perplexity_lengths() const {
  const auto& lengths = config_.evaluation().perplexity().lengths();
  return {lengths.begin(), lengths.end()};
}

}  // namespace farspan
