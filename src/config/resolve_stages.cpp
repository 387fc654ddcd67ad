// What a curriculum with stages implies, written into the configuration: after it each stage says
// its length, micro-batch and layout (and but for cyclic its steps), so that the resolved file
// runs the same again.
#include <fmt/format.h>

#include <algorithm>

#include "config/stages.h"

namespace farspan {
namespace {

struct StageSection {
  std::string_view stage;  // of Stage
  std::string_view whole;  // of RunConfig
};
constexpr StageSection kSections[] = {
    {"sequence_length", "train.sequence_length"},
    {"micro_batch", "train.micro_batch"},
    {"parallel", "parallel"},
    {"sliding_window", "model.sliding_window"},
    {"rope", "model.rope"},
    {"positions", "positions"},
    {"train", "data.train"},
};

// `key` is `section`, or inside it.
bool inside(std::string_view key, std::string_view section) {
  return key.starts_with(section) &&
         (key.size() == section.size() || key[section.size()] == '.' || key[section.size()] == '[');
}

std::string stage_prefix(int i) { return fmt::format("curriculum.stages[{}].", i); }

class StageResolver {
 public:
  StageResolver(LoadedConfig& loaded, std::int64_t ranks)
      : loaded_(loaded),
        config_(loaded.config),
        curriculum_(*loaded.config.mutable_curriculum()),
        ranks_(ranks) {}

  void run() {
    expand();
    resolve_length();
    given_ = loaded_;
    resolve_batch();
    resolve_steps();
    resolve_single(loaded_, ranks_);
    for (int i = 0; i < curriculum_.stages_size(); ++i) resolve_stage(i);
  }

 private:
  template <typename... Args>
  void implied(const std::string& key, fmt::format_string<Args...> format, Args&&... args) {
    loaded_.origins[key] = "implied: " + fmt::format(format, std::forward<Args>(args)...);
  }

  void expand();
  void resolve_length();
  void resolve_batch();
  void resolve_steps();
  void resolve_stage(int i);
  LoadedConfig resolved_stage(int i) const;
  void resolve_micro_batch(LoadedConfig& stage) const;

  LoadedConfig& loaded_;
  RunConfig& config_;
  config::Curriculum& curriculum_;
  std::int64_t ranks_;
  LoadedConfig given_;  // before anything but lengths and budgets was filled in
};

// min_length, doubled up to max_length, as stages.
void StageResolver::expand() {
  if (curriculum_.stages_size() > 0 || !curriculum_.has_min_length()) return;
  const std::int64_t first = curriculum_.min_length();
  const std::int64_t last =
      curriculum_.has_max_length() ? curriculum_.max_length() : config_.train().sequence_length();
  std::int64_t length = first;
  while (length < last) length *= 2;
  if (length != last) return;  // for validate() to report
  for (length = first; length <= last; length *= 2) {
    implied(stage_prefix(curriculum_.stages_size()) + "sequence_length",
            "curriculum.min_length {} doubled up to {}", first, last);
    curriculum_.add_stages()->set_sequence_length(length);
  }
  curriculum_.clear_min_length();
  curriculum_.clear_max_length();
  implied("curriculum.min_length", "became curriculum.stages");
  implied("curriculum.max_length", "became curriculum.stages");
  implied("curriculum.stages", "curriculum.min_length");
}

void StageResolver::resolve_length() {
  std::int64_t longest = 0;
  for (const config::Stage& stage : curriculum_.stages())
    longest = std::max(longest, stage.sequence_length());
  config::Train& train = *config_.mutable_train();
  if (longest > 0 && !train.has_sequence_length()) {
    train.set_sequence_length(longest);
    implied("train.sequence_length", "the longest stage's");
  }
  for (int i = 0; i < curriculum_.stages_size(); ++i) {
    config::Stage& stage = *curriculum_.mutable_stages(i);
    if (stage.has_sequence_length()) continue;
    stage.set_sequence_length(train.sequence_length());
    implied(stage_prefix(i) + "sequence_length", "train.sequence_length");
  }
}

// One sequence for each data rank of the stage that needs the most tokens for it.
void StageResolver::resolve_batch() {
  if (config_.train().has_batch_tokens()) return;
  std::int64_t unit = 0;
  for (int i = 0; i < curriculum_.stages_size(); ++i)
    unit = std::max(unit, resolved_stage(i).config.train().batch_tokens());
  if (unit == 0) return;
  config_.mutable_train()->set_batch_tokens(unit);
  implied("train.batch_tokens", "one sequence per data rank, in the stage that needs most for it");
}

// Budgets in steps. Stages without one share equally what the others leave of the run's.
void StageResolver::resolve_steps() {
  config::Train& train = *config_.mutable_train();
  const std::int64_t batch = train.batch_tokens();
  std::int64_t total = train.steps();
  if (!train.has_steps() && train.has_tokens() && batch > 0)
    total = steps_of(train.tokens(), batch);
  if (curriculum_.type() == "cyclic") return;  // all alike: plan_stages shares out
  std::int64_t given = 0, open = 0;
  for (int i = 0; i < curriculum_.stages_size(); ++i) {
    config::Stage& stage = *curriculum_.mutable_stages(i);
    if (!stage.has_steps() && stage.has_tokens() && batch > 0) {
      stage.set_steps(steps_of(stage.tokens(), batch));
      implied(stage_prefix(i) + "steps", "tokens {} / {} per step, rounded up", stage.tokens(),
              batch);
      implied(stage_prefix(i) + "tokens", "became steps");
      stage.clear_tokens();
    }
    given += stage.steps();
    if (!stage.has_steps()) ++open;
  }
  if (open == 0 && total == 0 && given > 0) {
    train.set_steps(given);
    implied("train.steps", "the sum of the stages");
  }
  const std::int64_t left = total - given;
  if (open == 0 || left < open) return;
  for (std::int64_t i = 0, k = 0; i < curriculum_.stages_size(); ++i) {
    config::Stage& stage = *curriculum_.mutable_stages(static_cast<int>(i));
    if (stage.has_steps()) continue;
    const auto border = [&](std::int64_t n) { return left / open * n + left % open * n / open; };
    stage.set_steps(border(k + 1) - border(k));
    ++k;
    implied(stage_prefix(static_cast<int>(i)) + "steps", "an equal share of the {} steps left",
            left);
  }
}

// A micro-batch that was given for the longest stage: as many tokens in the others.
void StageResolver::resolve_micro_batch(LoadedConfig& stage) const {
  config::Train& train = *stage.config.mutable_train();
  const std::int64_t given = given_.config.train().micro_batch();
  const std::int64_t unit = train.sequence_length() * stage.config.parallel().data();
  if (given == 0 || train.micro_batch() != given || unit < 1 || train.batch_tokens() % unit != 0)
    return;
  train.set_micro_batch(
      largest_divisor(train.batch_tokens() / unit,
                      given * given_.config.train().sequence_length() / train.sequence_length()));
  stage.origins["train.micro_batch"] = "implied: train.micro_batch, in tokens";
}

LoadedConfig StageResolver::resolved_stage(int i) const {
  LoadedConfig whole = given_;
  whole.config.mutable_train()->clear_tokens();
  if (config_.train().has_batch_tokens())
    whole.config.mutable_train()->set_batch_tokens(config_.train().batch_tokens());
  LoadedConfig stage = stage_of(whole, i);
  resolve_single(stage, ranks_);
  if (!curriculum_.stages(i).has_micro_batch()) resolve_micro_batch(stage);
  return stage;
}

void StageResolver::resolve_stage(int i) {
  const LoadedConfig resolved = resolved_stage(i);
  config::Stage& stage = *curriculum_.mutable_stages(i);
  const config::Parallel& layout = resolved.config.parallel();
  config::Parallel& own = *stage.mutable_parallel();
  own.set_data(layout.data());
  own.set_context(layout.context());
  own.set_attention(layout.attention());
  own.set_ulysses(layout.ulysses());
  own.set_layout(layout.layout());
  stage.set_micro_batch(resolved.config.train().micro_batch());
  if (stage.has_positions() || resolved.config.positions().sampler() != "sequential")
    *stage.mutable_positions() = resolved.config.positions();
  if (stage.rope().has_scaling())
    *stage.mutable_rope()->mutable_scaling() = resolved.config.model().rope().scaling();
  for (const auto& [key, origin] : resolved.origins) {
    const bool written = inside(key, "parallel") || key == "train.micro_batch" ||
                         (stage.has_positions() && inside(key, "positions")) ||
                         (stage.rope().has_scaling() && inside(key, "model.rope.scaling"));
    if (written) loaded_.origins[stage_key(i, key)] = origin;
  }
}

}  // namespace

std::int64_t steps_of(std::int64_t tokens, std::int64_t batch_tokens) {
  return tokens / batch_tokens + (tokens % batch_tokens != 0 ? 1 : 0);
}

std::string stage_key(int i, std::string_view key) {
  for (const StageSection& section : kSections)
    if (inside(key, section.whole))
      return stage_prefix(i) + std::string(section.stage) +
             std::string(key.substr(section.whole.size()));
  return {};
}

LoadedConfig stage_of(const LoadedConfig& loaded, int i) {
  LoadedConfig out = loaded;
  out.config = with_stage(loaded.config, loaded.config.curriculum().stages(i));
  const std::string prefix = stage_prefix(i);
  for (const auto& [key, origin] : loaded.origins) {
    if (!key.starts_with(prefix)) continue;
    const std::string_view own = std::string_view(key).substr(prefix.size());
    for (const StageSection& section : kSections)
      if (inside(own, section.stage))
        out.origins[std::string(section.whole) + std::string(own.substr(section.stage.size()))] =
            origin;
  }
  return out;
}

void resolve_stages(LoadedConfig& loaded, std::int64_t ranks) {
  StageResolver(loaded, ranks).run();
}

}  // namespace farspan
