// YAML -> RunConfig, with every problem reported at once.
//
//   LoadedConfig c = load_config("configs/quickstart.yaml", {"train.steps=20"});   // throws
//   ConfigError std::vector<Issue> issues = validate(c, {.num_ranks = 2});
//
// The loader knows names, types, quantities and ranges (from run_config.proto); the validator knows
// what goes together and what this build can do (config/validate.h).
#pragma once

#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "config/run_config.pb.h"
#include "core/error.h"

namespace farspan {

using config::RunConfig;

// One problem of a configuration: where (file:line:column, or the override's text), what, and what
// to do. `key` is the dotted name.
struct Issue {
  std::string key;
  std::string where;
  std::string what;
  std::string fix;
  bool note = false;  // absent data or device: a note in `config`, an error in `train`
};

// All issues of a configuration as one Error(kUsage) for people.
class ConfigError : public Error {
 public:
  explicit ConfigError(std::vector<Issue> issues);
  const std::vector<Issue>& issues() const { return issues_; }

 private:
  std::vector<Issue> issues_;
};

struct LoadedConfig {
  RunConfig config;
  std::map<std::string, std::string>
      origins;  // dotted key -> "configs/a.yaml:12:3", "command line", "default"
};

LoadedConfig load_config(const std::filesystem::path& path, std::span<const std::string> overrides);
LoadedConfig parse_config(std::string_view yaml, std::string_view file_name,
                          std::span<const std::string> overrides);

// The configuration as YAML with plain numbers that loads back to the same message (every key
// present). With `origins`, each line ends in a comment saying where the value came from.
std::string to_yaml(const RunConfig& config,
                    const std::map<std::string, std::string>* origins = nullptr);

}  // namespace farspan
