// farspan config: what a configuration says, checked, without running it.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "app/command.h"
#include "config/curriculum.h"
#include "config/validate.h"

namespace farspan::app {
namespace {

struct ConfigArguments {
  std::string config;
  std::vector<std::string> overrides;
  bool resolved = false;
  bool show_origin = false;
  bool json = false;
  bool keys = false;
  int ranks = 0;
};

bool is_error(const Issue& issue) { return !issue.note; }

void print_json(const ConfigArguments& args, const LoadedConfig& shown, int ranks,
                const std::vector<Issue>& issues) {
  using Json = nlohmann::ordered_json;
  Json out;
  out["ok"] = std::none_of(issues.begin(), issues.end(), is_error);
  out["ranks"] = ranks;
  out["resolved"] = args.resolved;
  out["config"] = Json::parse(to_json(shown.config));
  if (args.show_origin) out["origins"] = shown.origins;
  out["issues"] = Json::array();
  for (const Issue& issue : issues)
    out["issues"].push_back({{"key", issue.key},
                             {"where", issue.where},
                             {"what", issue.what},
                             {"fix", issue.fix},
                             {"note", issue.note}});
  fmt::print("{}\n", out.dump(2));
}

void run_config(Session& session, const ConfigArguments& args) {
  if (args.keys) {
    fmt::print("{}", keys_text());
    return;
  }
  if (args.config.empty())
    throw Error(ExitCode::kUsage, {.what = "no configuration was named",
                                   .fix = "farspan config CONFIG.yaml; --keys lists every key"});
  const LoadResult read = read_config_file(args.config, args.overrides);
  const int ranks = args.ranks > 0 ? args.ranks : natural_ranks(read.loaded.config);
  const LoadResult checked = check_config(read, {.num_ranks = ranks, .need_files = false});
  const LoadedConfig& shown = args.resolved ? checked.loaded : read.loaded;
  const bool failed = std::any_of(checked.issues.begin(), checked.issues.end(), is_error);

  if (args.json) {
    print_json(args, shown, ranks, checked.issues);
    session.exit_code = static_cast<int>(failed ? ExitCode::kUsage : ExitCode::kOk);
    return;
  }
  for (const Issue& issue : checked.issues)
    if (issue.note) fmt::print(stderr, "note: {}\n", to_text(issue));
  if (failed) throw ConfigError(checked.issues);
  if (args.resolved && args.ranks == 0)
    fmt::print(stderr,
               "note: resolved for {} rank{}, which the mesh asks for; --ranks N for others\n",
               ranks, ranks == 1 ? "" : "s");
  fmt::print("{}", to_yaml(shown.config, args.show_origin ? &shown.origins : nullptr));
  const std::vector<StagePlan> stages = plan_stages(checked.loaded.config);
  if (stages.size() > 1)
    for (const std::string& line : stage_lines(stages)) fmt::print("# {}\n", line);
}

}  // namespace

void add_config_command(CLI::App& app, Session& session) {
  auto args = std::make_shared<ConfigArguments>();
  CLI::App* cmd = app.add_subcommand("config", "check a configuration and print what would run");
  cmd->add_option("config", args->config, "configuration, YAML");
  cmd->add_option("overrides", args->overrides,
                  "section.key=value, as in the YAML; key=null unsets");
  cmd->add_flag("--resolved", args->resolved, "fill in what other keys and the ranks imply");
  cmd->add_flag("--show-origin", args->show_origin, "say where each value came from");
  cmd->add_option("--ranks", args->ranks, "ranks to check for (default: what the mesh asks for)")
      ->check(CLI::Range(1, 1 << 20));
  cmd->add_flag("--json", args->json, "print one JSON object, issues included");
  cmd->add_flag("--keys", args->keys, "print every key with its values, default and meaning");
  cmd->callback([args, &session] { run_config(session, *args); });
}

}  // namespace farspan::app
