#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <map>

#include "config/curriculum.h"
#include "config/schema.h"
#include "config/validate.h"

namespace farspan {
namespace {

// What a checkpoint's weights, optimizer state and place in the data depend on. Everything else
// (steps, rates, layout of ranks, cadences, folders, evaluation) may change between starts.
constexpr const char* kFixedKeys[] = {
    "seed",
    "model",
    "data.train",
    "data.packing",
    "data.documents",
    "train.sequence_length",
    "train.batch_tokens",
    "train.precision",
    "optimizer.type",
    "positions",
};

bool is_fixed(const std::string& key) {
  return std::any_of(std::begin(kFixedKeys), std::end(kFixedKeys), [&](std::string_view fixed) {
    return key.starts_with(fixed) &&
           (key.size() == fixed.size() || key[fixed.size()] == '.' || key[fixed.size()] == '[');
  });
}

std::map<std::string, std::string> fixed_values(const RunConfig& config) {
  std::map<std::string, std::string> out;
  visit_leaves(config, [&](const std::string& key, const auto& field, const auto& parent) {
    if (!is_fixed(key) || key == "model.from") return;  // that was read before the first step
    out[key] = is_section_field(field) ? "nothing" : value_text(parent, field);
  });
  return out;
}

std::vector<std::string> differences(const RunConfig& saved, const RunConfig& current) {
  const auto before = fixed_values(saved), now = fixed_values(current);
  std::vector<std::string> out;
  const auto compare = [&](const std::string& key) {
    const auto a = before.find(key), b = now.find(key);
    const std::string old_value = a == before.end() ? "nothing" : a->second;
    const std::string new_value = b == now.end() ? "nothing" : b->second;
    if (old_value != new_value)
      out.push_back(fmt::format("{}: {} in the saved run, {} now", key, old_value, new_value));
  };
  for (const auto& [key, value] : before) compare(key);
  for (const auto& [key, value] : now)
    if (before.find(key) == before.end()) compare(key);
  return out;
}

// A stage that has trained `done` steps and, unless it is the present one, will train no more.
// Whether it ends, or its window begins, elsewhere than it did.
bool compare_stage(const StagePlan& before, const StagePlan& now, std::int64_t done, bool present,
                   bool gated, std::vector<std::string>& out) {
  const std::string stage = fmt::format("stage {} of the curriculum, ", now.index);
  for (const std::string& difference : differences(before.config, now.config))
    out.push_back(stage + difference);
  if (before.window != now.window)
    out.push_back(
        fmt::format("{}its window: {} in the saved run, {} now", stage, before.window, now.window));
  const bool moved = present ? now.steps < done : !gated && now.steps != done;
  if (moved) out.push_back(fmt::format("{}its steps: {} done, {} now", stage, done, now.steps));
  return moved || before.window != now.window;
}

// Why stages that nobody touched end elsewhere, and what to do instead.
std::string moved_by_steps(const RunConfig& saved, const RunConfig& current) {
  const std::string what = fmt::format("train.steps: {} in the saved run, {} now, ",
                                       saved.train().steps(), current.train().steps());
  const std::string& type = current.curriculum().type();
  if (type == "window")
    return what + fmt::format(
                      "and a share of it as window_steps moves every window: to change it "
                      "give the saved run's, curriculum.window_steps={:g}",
                      saved.curriculum().window_steps());
  if (type == "cyclic")
    return what +
           "and the stages of cyclic share it equally, also those that are over: to change it list "
           "all stages in order, each with the steps of the saved run, as type: growlength";
  const bool listed = type == saved.curriculum().type() && saved.curriculum().stages_size() > 0;
  return what +
         "and stages without steps of their own share it equally, also those that are over: "
         "to change it list the stages with their steps" +
         (listed ? fmt::format(", as config.resolved.yaml of the saved run does (train that with "
                               "train.steps=null and another curriculum.stages[{}].steps)",
                               saved.curriculum().stages_size() - 1)
                 : "");
}

}  // namespace

std::vector<std::string> resume_conflicts(const RunConfig& saved, const RunConfig& current,
                                          const std::vector<std::int64_t>& stage_steps) {
  const std::vector<StagePlan> before = plan_stages(saved), now = plan_stages(current);
  const std::size_t trained = stages_trained(stage_steps);
  if (trained == 1 && before.size() == 1 && now.size() == 1) return differences(saved, current);
  std::vector<std::string> out;
  bool moved = false;
  const bool gated = current.curriculum().type() == "gated";
  for (std::size_t i = 0; i < std::min(trained, before.size()); ++i) {
    if (i == now.size()) {
      out.push_back(
          fmt::format("curriculum: stage {} has begun in the saved run, and there are {} "
                      "stages now",
                      trained - 1, now.size()));
      break;
    }
    const std::int64_t done = i < stage_steps.size() ? stage_steps[i] : 0;
    moved |= compare_stage(before[i], now[i], done, i + 1 == trained, gated, out);
  }
  if (moved && saved.train().steps() != current.train().steps())
    out.push_back(moved_by_steps(saved, current));
  return out;
}

}  // namespace farspan
