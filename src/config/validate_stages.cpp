// A configuration with stages: each stage is checked as a configuration of its own. What all of
// them have in common is said once; what is one stage's own names that stage.
#include <fmt/format.h>

#include <algorithm>
#include <map>

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

// The same issue, said of stage `i`.
Issue named(Issue issue, const RunConfig& stage, int i) {
  const std::string key = stage_key(i, issue.key);
  const std::string length = fmt::format("curriculum.stages[{}].sequence_length", i);
  issue.also.push_back(issue.key);
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

}  // namespace

std::vector<Issue> validate_stages(const LoadedConfig& loaded, const ValidateOptions& options) {
  Rules rules(loaded, options);
  check_built(rules, "curriculum.");
  check_curriculum(rules);
  std::vector<Issue> out = rules.take();
  const int count = loaded.config.curriculum().stages_size();
  if (count == 0) {
    LoadedConfig whole = loaded;
    whole.config.mutable_curriculum()->Clear();
    for (Issue& issue : validate_single(whole, options)) out.push_back(std::move(issue));
    return out;
  }
  std::vector<StageIssues> stages;
  std::map<std::string, int> times;  // an issue is said so often
  for (int i = 0; i < count; ++i) {
    stages.push_back(check_stage(loaded, options, i));
    for (const Issue& issue : stages.back().issues) ++times[issue.key + '\n' + issue.what];
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
