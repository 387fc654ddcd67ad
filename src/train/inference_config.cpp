#include "train/inference_config.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>

#include "config/curriculum.h"
#include "config/validate.h"
#include "train/auto_sharding.h"
#include "train/micro_batch.h"

namespace farspan {
namespace {

// Keys, or sections, that a checkpoint may be read with otherwise than it was trained.
constexpr std::array kReadByInference = {
    "device",
    "device_memory",
    "model.rope",
    "model.sliding_window",
    "model.attention_sinks",
    "model.layer_types",
    "model.sparse_attention",
    "model.xpos_scale_base",
    "parallel.data",
    "parallel.context",
    "parallel.attention",
    "parallel.ulysses",
    "parallel.layout",
    "parallel.attention_kernel",
    "parallel.transport",
    "train.precision",
    "train.token_tile",
};

bool is_in(const std::string& key, std::string_view section) {
  return key.starts_with(section) && (key.size() == section.size() || key[section.size()] == '.');
}

bool is_read(const std::string& key) {
  return std::any_of(kReadByInference.begin(), kReadByInference.end(),
                     [&](std::string_view section) { return is_in(key, section); });
}

// Nothing of training's plans, and none of its layout.
config::RunConfig without_training(const config::RunConfig& trained) {
  config::RunConfig out = trained;
  out.clear_device_memory();
  out.mutable_model()->clear_from();
  out.clear_optimizer();
  out.clear_schedule();
  out.clear_parallel();
  out.clear_curriculum();
  out.clear_checkpoint();
  out.clear_evaluation();
  out.clear_logging();
  out.clear_positions();
  if (trained.positions().has_reset_per_document())
    out.mutable_positions()->set_reset_per_document(trained.positions().reset_per_document());
  out.clear_train();
  config::Train& train = *out.mutable_train();
  train.set_sequence_length(trained.train().sequence_length());
  train.set_precision(trained.train().precision());
  train.set_token_tile(trained.train().token_tile());
  train.set_steps(1);
  return out;
}

LoadResult read(const config::RunConfig& base, const std::string& where,
                std::span<const std::string> overrides) {
  return read_config(to_yaml(base), where, overrides);
}

// The saved configuration is resolved: it has both factor and target_context, which follow from one
// another. A new one of them replaces the other.
void forget_implied_scaling(config::RunConfig& base, const LoadedConfig& given) {
  const std::string section = "model.rope.scaling.";
  const auto typed = [&](const char* key) {
    const auto origin = given.origins.find(section + key);
    return origin != given.origins.end() && origin->second == "command line";
  };
  config::RopeScaling& scaling = *base.mutable_model()->mutable_rope()->mutable_scaling();
  const bool other = typed("type") || typed("original_context");
  if (typed("factor") || other) scaling.clear_target_context();
  if (typed("target_context") || other) scaling.clear_factor();
}

std::vector<Issue> refused_overrides(const LoadedConfig& given) {
  std::vector<Issue> out;
  for (const auto& [key, origin] : given.origins) {
    if (origin != "command line" || is_read(key)) continue;
    out.push_back(
        {.key = key,
         .where = "command line",
         .what = key.starts_with("model.")
                     ? "is the shape or the nature of the saved weights, and cannot change"
                     : "is read by training only",
         .fix = fmt::format("leave it out; what may change: {}", inference_keys())});
  }
  return out;
}

}  // namespace

std::string inference_keys() { return fmt::format("{}", fmt::join(kReadByInference, ", ")); }

InferenceConfig inference_config(std::string_view saved_yaml, const std::string& where,
                                 std::span<const std::string> overrides, int num_ranks,
                                 const std::vector<std::int64_t>& stage_steps) {
  InferenceConfig out;
  out.trained = trained_config(parse_config(saved_yaml, where, {}).config, stage_steps);
  config::RunConfig base = without_training(out.trained);
  LoadResult given = read(base, where, overrides);
  if (given.issues.empty()) given.issues = refused_overrides(given.loaded);
  if (!given.issues.empty()) throw ConfigError(std::move(given.issues));
  forget_implied_scaling(base, given.loaded);

  LoadResult result =
      check_config(read(base, where, overrides), {.num_ranks = num_ranks, .need_files = false});
  const bool failed = std::any_of(result.issues.begin(), result.issues.end(),
                                  [](const Issue& issue) { return !issue.note; });
  if (failed) throw ConfigError(std::move(result.issues));
  for (Issue& note : result.issues) {
    const bool about_training = is_in(note.key, "train") || note.key.starts_with("data") ||
                                is_in(note.key, "parallel") || is_in(note.key, "schedule");
    if (!about_training) out.notes.push_back(std::move(note));
  }
  out.config = std::move(result.loaded.config);
  if (sharding_is_automatic(out.config))
    choose_sharding(out.config, blank_batch(1, out.config.train().sequence_length()));
  return out;
}

std::int64_t trained_context(const config::RunConfig& trained) {
  std::int64_t longest = trained.train().sequence_length();
  if (trained.positions().sampler() != "sequential")
    longest = std::max(longest, trained.positions().target_context());
  return std::max(longest, trained.model().rope().scaling().target_context());
}

}  // namespace farspan
