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
#include <string_view>
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
  // Other keys this is about: keys that a rule also read, or that an unknown key may have meant.
  // Where one of them already has an issue, what follows from it is not reported.
  std::vector<std::string> also{};
};

// "configs/a.yaml:12:3: train.steps: 'ten' is not a whole number\n    fix: ...".
std::string to_text(const Issue& issue);

// All issues of a configuration as one Error(kUsage) for people. Notes are left out of the text.
class ConfigError : public Error {
 public:
  explicit ConfigError(std::vector<Issue> issues);
  const std::vector<Issue>& issues() const { return issues_; }

 private:
  std::vector<Issue> issues_;
};

struct LoadedConfig {
  RunConfig config;
  // Dotted key of every leaf -> "configs/a.yaml:12:3", "command line", "default",
  // or (after resolve) "implied: ...".
  std::map<std::string, std::string> origins;
  std::string file;          // as given, for messages
  std::vector<Issue> notes;  // what load_resolved found worth saying though it is no error
};

// What could be read, and what could not. load_config and parse_config throw instead.
struct LoadResult {
  LoadedConfig loaded;
  std::vector<Issue> issues;
};

// `file_name` only names the text in messages. Never throws for any text or override.
LoadResult read_config(std::string_view yaml, std::string_view file_name,
                       std::span<const std::string> overrides);
// Throws Error(kUsage) when the file cannot be read.
LoadResult read_config_file(const std::filesystem::path& path,
                            std::span<const std::string> overrides);

// The file, then the overrides ("section.key=value", later ones win; "key=null" unsets) on top.
// Throws ConfigError with every issue of names, types, quantities and ranges.
LoadedConfig load_config(const std::filesystem::path& path, std::span<const std::string> overrides);
LoadedConfig parse_config(std::string_view yaml, std::string_view file_name,
                          std::span<const std::string> overrides);

// The configuration as YAML with plain numbers that loads back to an equivalent message (unset keys
// are printed with their defaults, or null). With `origins`, each line ends in a comment saying
// where the value came from.
std::string to_yaml(const RunConfig& config,
                    const std::map<std::string, std::string>* origins = nullptr);

// The same as one JSON object, nested as the YAML is.
std::string to_json(const RunConfig& config);

// A table of every key with its type, default and meaning, for `farspan config --keys`.
std::string keys_text();

}  // namespace farspan
