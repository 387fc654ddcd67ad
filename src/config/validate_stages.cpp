// A configuration with stages: each stage is checked as a configuration of its own. What all of
// them have in common is said once; what is one stage's own names that stage.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <numeric>

#include "config/schema.h"
#include "config/stages.h"

namespace farspan {
namespace {

// Tokens of a tile of the attention kernels: below it most of the work is on nothing.
constexpr std::int64_t kTile = 64;

void check_tile(Rules& rules) {
  const RunConfig& config = rules.config();
  const std::int64_t length = config.train().sequence_length(),
                     context = config.parallel().context();
  if (length < 1 || context < 1 || length / context >= kTile) return;
  rules.add("train.sequence_length",
            context == 1 ? fmt::format("{} tokens are less than a tile of {}", length, kTile)
                         : fmt::format("{} tokens on {} context ranks are {} each, less than a "
                                       "tile of {}",
                                       length, context, length / context, kTile),
            context == 1 ? fmt::format("use {} or more", kTile)
                         : fmt::format("use {} or more, or data ranks in their place: parallel: "
                                       "{{context: {}}}",
                                       kTile * context, std::max<std::int64_t>(length / kTile, 1)),
            {"parallel.context"});
}

// Chosen once, when the run starts.
void check_fixed_layout(Rules& rules, const config::Parallel& whole) {
  constexpr const char* kFixed[] = {"zero", "attention_kernel", "deterministic", "invariant",
                                    "transport"};
  const config::Parallel& stage = rules.config().parallel();
  for (const char* name : kFixed) {
    const std::string own = value_text(stage, name), everywhere = value_text(whole, name);
    if (own == everywhere) continue;
    rules.add(std::string("parallel.") + name,
              fmt::format("{} differs from the run's {}, and cannot change between stages", own,
                          everywhere),
              fmt::format("set it for the whole run: parallel.{}", name));
  }
}

struct StageIssues {
  LoadedConfig config;
  std::vector<Issue> issues;
};

StageIssues check_stage(const LoadedConfig& loaded, const ValidateOptions& options, int i) {
  StageIssues out{stage_of(loaded, i), {}};
  out.issues = validate_single(out.config, options);
  Rules rules(out.config, options);
  check_tile(rules);
  check_fixed_layout(rules, loaded.config.parallel());
  for (Issue& issue : rules.take()) out.issues.push_back(std::move(issue));
  return out;
}

// The stage itself says one of the keys that the issue is about: what the run says does not count.
bool is_own(const LoadedConfig& loaded, const Issue& issue, int i) {
  const auto origin_of = [&](const std::string& key) {
    const auto found = loaded.origins.find(key);
    return found == loaded.origins.end() ? std::string("default") : found->second;
  };
  const auto own = [&](const std::string& key) {
    const std::string in_stage = stage_key(i, key);
    if (in_stage.empty()) return false;
    const std::string origin = origin_of(in_stage);
    return origin != "default" && !origin.starts_with("implied") && origin != origin_of(key);
  };
  return own(issue.key) || std::any_of(issue.also.begin(), issue.also.end(), own);
}

// Keys of a layout that a fix says to set, as the stage's: its own hide the run's.
std::string layout_in_stage(std::string fix, int i) {
  for (const char* key : {"parallel.data=", "parallel.context="}) {
    const std::string own = stage_key(i, key);
    for (std::size_t at = fix.find(key); at != std::string::npos;
         at = fix.find(key, at + own.size()))
      fix.replace(at, std::string_view(key).size(), own);
  }
  return fix;
}

// The same issue, said of stage `i`.
Issue named(Issue issue, const RunConfig& stage, int i) {
  const std::string key = stage_key(i, issue.key);
  const std::string length = fmt::format("curriculum.stages[{}].sequence_length", i);
  issue.also.push_back(issue.key);
  issue.fix = layout_in_stage(std::move(issue.fix), i);
  if (!key.empty()) {
    issue.also.push_back(fmt::format("curriculum.stages[{}]", i));
    issue.key = key;
  } else {
    // Of the whole run, as this stage needs it: most often its length is what does not go with it.
    issue.what = fmt::format("{}: {}", issue.key, issue.what);
    issue.fix = fmt::format("{} {}", issue.key, issue.fix);
    issue.key = length;
  }
  issue.what = fmt::format("{} (stage of {} tokens)", issue.what, stage.train().sequence_length());
  return issue;
}

// batch_tokens goes with all stages or with none: one number for it, not one for each stage.
void check_common_batch(Rules& rules, const std::vector<StageIssues>& stages) {
  constexpr std::int64_t kMost = std::int64_t{1} << 40;  // a multiple above it is no advice
  const std::int64_t batch = rules.config().train().batch_tokens();
  std::int64_t unit = 1, largest = 1;
  std::string refused;
  for (std::size_t i = 0; i < stages.size(); ++i) {
    const RunConfig& stage = stages[i].config.config;
    const std::int64_t length = stage.train().sequence_length(), data = stage.parallel().data();
    if (length < 1 || data < 1 || length > kMost / data) continue;
    const std::int64_t factor = length * data / std::gcd(unit, length * data);
    unit = unit > kMost / factor ? kMost : unit * factor;
    largest = std::max(largest, length * data);
    if (batch % (length * data) != 0)
      refused += fmt::format("{}{} x {} (stage {})", refused.empty() ? "" : ", ", length, data, i);
  }
  const std::int64_t below = batch / unit * unit;
  const std::string other =
      unit == largest ? "" : ", or lengths that divide one another, such as 4k, 8k, 16k";
  const std::string fix =
      unit == kMost ? "use lengths that divide one another, such as 4k, 8k, 16k"
                    : fmt::format("use {}, a multiple of every stage's{}",
                                  below == 0 ? fmt::to_string(unit)
                                             : fmt::format("{} or {}", below, below + unit),
                                  other);
  rules.add("train.batch_tokens",
            fmt::format("{} is not a multiple of sequence_length x data ranks, {}", batch, refused),
            fix, {"curriculum.stages", "parallel.data", "parallel.context", "train.micro_batch"});
}

}  // namespace

std::vector<Issue> validate_stages(const LoadedConfig& loaded, const ValidateOptions& options) {
  Rules rules(loaded, options);
  check_built(rules, "curriculum.");
  check_curriculum(rules);
  std::vector<Issue> out = rules.take();
  const int count = loaded.config.curriculum().stages_size();
  if (count == 0) return out;  // without the stages' lengths the rest is about the defaults
  // The curriculum's rules say how stages and train.steps go together, with the stages as a cause.
  const bool budget_said = std::any_of(
      out.begin(), out.end(), [](const Issue& issue) { return issue.key == "train.steps"; });
  std::vector<StageIssues> stages;
  std::map<std::string, int> times;  // an issue is said so often
  bool batch_fits = true;
  for (int i = 0; i < count; ++i) {
    stages.push_back(check_stage(loaded, options, i));
    if (budget_said)
      std::erase_if(stages.back().issues,
                    [](const Issue& issue) { return issue.key == "train.steps" && !issue.note; });
    batch_fits &= std::erase_if(stages.back().issues, [](const Issue& issue) {
                    return issue.key == "train.batch_tokens";
                  }) == 0;
    for (const Issue& issue : stages.back().issues)
      if (!is_own(loaded, issue, i)) ++times[issue.key + '\n' + issue.what];
  }
  if (!batch_fits) {
    Rules common(loaded, options);
    check_common_batch(common, stages);
    for (Issue& issue : common.take()) out.push_back(std::move(issue));
  }
  for (int i = 0; i < count; ++i)
    for (Issue& issue : stages[static_cast<std::size_t>(i)].issues) {
      const bool common = times[issue.key + '\n' + issue.what] == count && count > 1;
      if (!common)
        out.push_back(
            named(std::move(issue), stages[static_cast<std::size_t>(i)].config.config, i));
      else if (i == 0)
        out.push_back(std::move(issue));
    }
  return out;
}

}  // namespace farspan
