#include <fmt/format.h>

#include "config/load.h"

namespace farspan {

std::string to_text(const Issue& issue) {
  std::string out = issue.where;
  if (!issue.key.empty()) out += (out.empty() ? "" : ": ") + issue.key;
  out += (out.empty() ? "" : ": ") + issue.what;
  if (!issue.fix.empty()) out += "\n      fix: " + issue.fix;
  return out;
}

namespace {

ErrorText summary(const std::vector<Issue>& issues) {
  // A file of another kind can give thousands; nobody reads past the first screen.
  constexpr int kMostShown = 30;
  int count = 0;
  const Issue* only = nullptr;
  std::string lines;
  for (const Issue& issue : issues) {
    if (issue.note) continue;
    only = &issue;
    if (++count <= kMostShown) lines += "\n    " + to_text(issue);
  }
  if (count == 1)
    return {
        .what = issues.empty() || only->key.empty() ? only->what : only->key + ": " + only->what,
        .where = only->where,
        .fix = only->fix};
  if (count > kMostShown) lines += fmt::format("\n    ... and {} more", count - kMostShown);
  return {.what = fmt::format("{} problems in the configuration{}", count, lines)};
}

}  // namespace

ConfigError::ConfigError(std::vector<Issue> issues)
    : Error(ExitCode::kUsage, summary(issues)), issues_(std::move(issues)) {}

}  // namespace farspan
