// farspan inspect positions: which distances the sampler of a configuration, or of a stage of it,
// shows, before anything runs.
#include "app/inspect_positions_command.h"

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "app/number_option.h"
#include "app/output_file.h"
#include "app/position_report.h"
#include "config/curriculum.h"
#include "config/validate.h"
#include "data/loader.h"

namespace farspan::app {
namespace {

struct Arguments {
  std::string config{}, plot{};
  std::vector<std::string> overrides{};
  std::int64_t samples = 10000;
  std::int64_t stage = -1;  // -1: outside of stages
  bool json = false;
};

void run(const Arguments& args) {
  if (!args.plot.empty()) check_output_file("--plot", args.plot, {".svg", ".png"});
  const LoadedConfig loaded =
      load_resolved(args.config, args.overrides, {.num_ranks = 0, .need_files = false});
  const std::vector<StagePlan> stages = plan_stages(loaded.config);
  const auto num_stages = static_cast<std::int64_t>(stages.size());
  if (args.stage >= num_stages)
    throw Error(ExitCode::kUsage,
                {.what = num_stages == 1 ? "the configuration has one stage, 0"
                                         : fmt::format("the configuration has the stages 0 to {}",
                                                       num_stages - 1),
                 .where = "--stage",
                 .fix = "name one of them, or leave --stage out"});
  const RunConfig& config =
      args.stage < 0 ? loaded.config : stages[static_cast<std::size_t>(args.stage)].config;
  // Each sample as one document: packed documents are shorter, and drawn alike.
  const PositionReport report =
      measure_positions(position_options(config), {.samples = args.samples,
                                                   .tokens = config.train().sequence_length(),
                                                   .seed = config.seed(),
                                                   .stage = static_cast<int>(args.stage)});
  if (!args.plot.empty()) draw_position_plot(report, args.plot);
  if (args.json)
    fmt::print("{}\n", position_json(report).dump(2));
  else
    fmt::print("{}", position_text(report));
  std::fflush(stdout);
  const std::string note = args.stage < 0 ? stage_positions_note(config, stages) : std::string();
  if (!note.empty()) fmt::print(stderr, "note: {}\n", note);
  if (!args.plot.empty()) fmt::print(stderr, "wrote {}\n", args.plot);
}

}  // namespace

void add_inspect_positions(CLI::App& inspect, Session&) {
  auto args = std::make_shared<Arguments>();
  CLI::App* cmd = inspect.add_subcommand(
      "positions", "which distances between tokens a sampler of positions shows, and how often");
  cmd->add_option("config", args->config, "configuration, YAML")->required();
  cmd->add_option("overrides", args->overrides, "section.key=value, as in the YAML");
  cmd->add_option("--samples", args->samples, "samples drawn")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{100'000'000}))
      ->capture_default_str();
  cmd->add_option("--stage", args->stage,
                  "a stage of the curriculum, from 0 (default: what holds outside of its stages)")
      ->check(whole_number(0, kMostInt));
  cmd->add_option("--plot", args->plot, "draw the coverage: FILE.svg or FILE.png");
  cmd->add_flag("--json", args->json, "print one JSON object");
  cmd->footer("docs/positions.md explains the figures.");
  cmd->callback([args, &inspect] {
    if (inspect.count("path") > 0 || inspect.count("--digest") > 0)
      throw Error(ExitCode::kUsage, {.what = "inspect was given both a path and positions",
                                     .fix = "farspan inspect PATH, or farspan inspect positions; a "
                                            "path of that name is ./positions"});
    if (inspect.count("--json") > 0) args->json = true;
    run(*args);
  });
}

}  // namespace farspan::app
