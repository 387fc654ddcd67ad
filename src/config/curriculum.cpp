#include "config/curriculum.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "config/schema.h"

namespace farspan {
namespace {

// The borders of `count` shares of `total` that differ by at most one.
std::int64_t share_begin(std::int64_t total, std::int64_t share, std::int64_t count) {
  return total / count * share + total % count * share / count;
}

void plan_listed(const RunConfig& config, std::vector<StagePlan>& out) {
  std::int64_t step = 0;
  for (int i = 0; i < config.curriculum().stages_size(); ++i) {
    const config::Stage& stage = config.curriculum().stages(i);
    out.push_back({.index = i,
                   .first_step = step,
                   .steps = stage.steps(),
                   .lr_factor = stage.lr_factor(),
                   .entry = i,
                   .config = with_stage(config, stage)});
    step += stage.steps();
  }
}

void plan_cycles(const RunConfig& config, std::vector<StagePlan>& out) {
  const int levels = config.curriculum().stages_size();
  const std::int64_t count = config.curriculum().cycles() * levels;
  for (std::int64_t j = 0; j < count; ++j) {
    const int entry = static_cast<int>(j % levels);
    const config::Stage& stage = config.curriculum().stages(entry);
    const std::int64_t begin = share_begin(config.train().steps(), j, count);
    out.push_back({.index = static_cast<int>(j),
                   .first_step = begin,
                   .steps = share_begin(config.train().steps(), j + 1, count) - begin,
                   .lr_factor = stage.lr_factor(),
                   .entry = entry,
                   .config = with_stage(config, stage)});
  }
}

// The window of SkyLadder after `step` steps (arXiv 2503.15450: linear, sinusoidal or exponential),
// from `first` to `last` over `steps`.
double window_at(const std::string& growth, double first, double last, double step, double steps) {
  const double x = std::min(1.0, step / steps);
  if (x >= 1) return last;
  if (growth == "sine") return first + (last - first) * std::sin(std::numbers::pi / 2 * x);
  if (growth == "exponential") return first * std::pow(last / first, x);
  return first + (last - first) * x;
}

// A stage for each window: the initial one, then multiples of a unit, at most kWindows of them, so
// that masks change a few times and not at every step; and at last none.
void plan_windows(const RunConfig& config, const RunConfig& stage, std::vector<StagePlan>& out) {
  constexpr std::int64_t kWindows = 32;
  const config::Curriculum& curriculum = config.curriculum();
  const std::int64_t first = curriculum.initial_window(), last = config.train().sequence_length();
  const std::int64_t total = config.train().steps();
  const auto steps = static_cast<std::int64_t>(std::llround(curriculum.window_steps()));
  const std::int64_t unit = std::max<std::int64_t>(1, (last + kWindows - 1) / kWindows);
  const auto reached = [&](std::int64_t window, std::int64_t step) {
    return window_at(curriculum.growth(), static_cast<double>(first), static_cast<double>(last),
                     static_cast<double>(step),
                     static_cast<double>(steps)) >= static_cast<double>(window);
  };
  const auto add = [&](std::int64_t window) {
    std::int64_t low = 0, high = steps;  // the first step at which it is reached
    while (low < high) {
      const std::int64_t middle = low + (high - low) / 2;
      if (reached(window, middle))
        high = middle;
      else
        low = middle + 1;
    }
    if (low >= total) return;
    if (!out.empty() && out.back().first_step == low) out.pop_back();
    out.push_back({.first_step = low, .window = window == last ? 0 : window, .config = stage});
  };
  add(first);
  for (std::int64_t window = (first / unit + 1) * unit; window < last; window += unit) add(window);
  add(last);
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i].index = static_cast<int>(i);
    out[i].steps = (i + 1 < out.size() ? out[i + 1].first_step : total) - out[i].first_step;
  }
}

RunConfig without_curriculum(const RunConfig& config) {
  RunConfig out = config;
  out.clear_curriculum();
  out.mutable_curriculum();
  return out;
}

}  // namespace

bool has_stages(const RunConfig& config) {
  const std::string& type = config.curriculum().type();
  return type == "growlength" || type == "cyclic" || type == "gated";
}

RunConfig with_stage(const RunConfig& config, const config::Stage& stage) {
  RunConfig out = without_curriculum(config);
  config::Train& train = *out.mutable_train();
  if (stage.has_sequence_length()) train.set_sequence_length(stage.sequence_length());
  if (stage.has_micro_batch()) train.set_micro_batch(stage.micro_batch());
  if (stage.has_parallel()) {
    const config::Parallel& given = stage.parallel();
    config::Parallel& parallel = *out.mutable_parallel();
    const bool mesh = given.has_data() || given.has_context();
    if (mesh) {
      parallel.clear_data();
      parallel.clear_context();
    }
    if (mesh || given.has_attention()) parallel.clear_ulysses();
    parallel.MergeFrom(given);
  }
  if (stage.has_sliding_window()) out.mutable_model()->set_sliding_window(stage.sliding_window());
  if (stage.has_rope()) {
    config::Rope& rope = *out.mutable_model()->mutable_rope();
    if (stage.rope().has_theta()) rope.set_theta(stage.rope().theta());
    if (stage.rope().has_scaling()) *rope.mutable_scaling() = stage.rope().scaling();
  }
  if (stage.has_positions()) *out.mutable_positions() = stage.positions();
  if (stage.train_size() > 0) *out.mutable_data()->mutable_train() = stage.train();
  return out;
}

std::vector<StagePlan> plan_stages(const RunConfig& config) {
  std::vector<StagePlan> out;
  if (has_stages(config) && config.curriculum().stages_size() > 0) {
    if (config.curriculum().type() == "cyclic")
      plan_cycles(config, out);
    else
      plan_listed(config, out);
  } else if (config.curriculum().type() == "window" && config.curriculum().window_steps() >= 1) {
    plan_windows(config, without_curriculum(config), out);
  } else {
    out.push_back({.steps = config.train().steps(), .config = without_curriculum(config)});
  }
  return out;
}

std::size_t stage_at(const std::vector<StagePlan>& stages, std::int64_t step) {
  const auto after =
      std::upper_bound(stages.begin(), stages.end(), step,
                       [](std::int64_t s, const StagePlan& stage) { return s < stage.first_step; });
  FARSPAN_CHECK(after != stages.begin(), "step {}", step);
  return static_cast<std::size_t>(after - stages.begin()) - 1;
}

void end_stage(std::vector<StagePlan>& stages, std::size_t stage, std::int64_t steps) {
  FARSPAN_CHECK(stage < stages.size() && steps >= 0, "stage {} after {} steps", stage, steps);
  stages[stage].steps = steps;
  for (std::size_t i = stage + 1; i < stages.size(); ++i)
    stages[i].first_step = stages[i - 1].end();
}

DistinctStages distinct_stages(const std::vector<StagePlan>& stages) {
  DistinctStages out;
  std::vector<std::string> seen;
  for (std::size_t i = 0; i < stages.size(); ++i) {
    const std::string text = stages[i].config.SerializeAsString();
    const auto found = std::find(seen.begin(), seen.end(), text);
    out.of_stage.push_back(static_cast<std::size_t>(found - seen.begin()));
    if (found != seen.end()) continue;
    seen.push_back(text);
    out.examples.push_back(i);
  }
  return out;
}

std::size_t stages_trained(const std::vector<std::int64_t>& stage_steps) {
  std::size_t out = 1;
  for (std::size_t i = 0; i < stage_steps.size(); ++i)
    if (stage_steps[i] > 0) out = i + 1;
  return out;
}

RunConfig trained_config(const RunConfig& config, const std::vector<std::int64_t>& stage_steps) {
  const std::vector<StagePlan> stages = plan_stages(config);
  std::size_t last = 0;
  std::int64_t longest = stages[0].config.train().sequence_length();
  for (std::size_t i = 0; i < std::min(stage_steps.size(), stages.size()); ++i) {
    if (stage_steps[i] == 0) continue;
    last = i;
    longest = std::max(longest, stages[i].config.train().sequence_length());
  }
  RunConfig out = stages[last].config;
  out.mutable_train()->set_sequence_length(longest);
  return out;
}

std::string stage_text(const StagePlan& stage) {
  const config::Train& train = stage.config.train();
  const config::Parallel& parallel = stage.config.parallel();
  std::string out =
      fmt::format("{} tokens, data {} x context {}, micro_batch {}", train.sequence_length(),
                  parallel.data(), parallel.context(), train.micro_batch());
  if (stage.window > 0) out += fmt::format(", window {}", stage.window);
  if (stage.lr_factor != 1) out += fmt::format(", lr x {:g}", stage.lr_factor);
  return out;
}

std::vector<std::string> stage_lines(const std::vector<StagePlan>& stages) {
  std::vector<std::string> out;
  for (const StagePlan& stage : stages)
    out.push_back(fmt::format(
        "stage {}: steps {} to {}, {} tokens in sequences of {}", stage.index, stage.first_step + 1,
        stage.end(), stage.steps * stage.config.train().batch_tokens(), stage_text(stage)));
  return out;
}

}  // namespace farspan
