// farspan inspect: what a token store, checkpoint or run holds and whether it verifies.
#include <memory>
#include <string>

#include "app/command.h"
#include "app/inspect_attention_command.h"
#include "app/inspect_positions_command.h"
#include "app/inspect_report.h"
#include "io/checkpoint.h"

namespace farspan::app {
namespace {

struct InspectArguments {
  std::string path;
  bool json = false;
  bool digest = false;
};

// The checkpoint whose content --digest tells: itself, or the newest of a run that verifies.
std::filesystem::path checkpoint_at(const std::filesystem::path& path) {
  switch (kind_of(path)) {
    case PathKind::kCheckpoint:
      return path;
    case PathKind::kTokenStore:
      throw Error(ExitCode::kUsage,
                  {.what = "--digest tells the content of checkpoints; this is a token store",
                   .where = path.string(),
                   .fix = "farspan inspect PATH prints a token store's hash"});
    case PathKind::kRun:
      break;
  }
  Log log;  // names on standard error what it passes over
  const auto checkpoints = checkpoints_of(path);
  const auto latest = find_latest_checkpoint(checkpoints, log);
  if (!latest)
    throw Error(ExitCode::kBadData, {.what = "the run has no checkpoint that verifies",
                                     .where = checkpoints.string(),
                                     .fix = "start the run, or restore a checkpoint"});
  return *latest;
}

void run_inspect(Session& session, const InspectArguments& args) {
  if (args.path.empty())
    throw Error(ExitCode::kUsage, {.what = "no path was named",
                                   .fix = "farspan inspect PATH: a token store, a checkpoint or a "
                                          "run's folder"});
  if (args.digest) {
    const CheckpointDigest d = digest_checkpoint(checkpoint_at(args.path));
    if (args.json)
      fmt::print("{}\n",
                 Json{{"weights", d.weights}, {"optimizer", d.optimizer}, {"data", d.data}}.dump());
    else
      fmt::print("weights {} optimizer {} data {}\n", d.weights, d.optimizer, d.data);
    return;
  }
  const Json report = inspect_path(args.path);
  if (args.json)
    fmt::print("{}\n", report.dump(2, ' ', false, Json::error_handler_t::replace));
  else
    fmt::print("{}", report_text(report));
  const bool verifies = report["verifies"].get<bool>();
  session.exit_code = static_cast<int>(verifies ? ExitCode::kOk : ExitCode::kBadData);
}

}  // namespace

void add_inspect_command(CLI::App& app, Session& session) {
  auto args = std::make_shared<InspectArguments>();
  CLI::App* cmd = app.add_subcommand(
      "inspect", "what a token store, checkpoint or run holds, and whether it verifies");
  // Not required(): subcommands of inspect come without a PATH.
  cmd->add_option("path", args->path, "token store (.h5), checkpoint folder, or a run's folder");
  cmd->add_flag("--digest", args->digest,
                "print one line: hashes of weights, optimizer and data cursor, the same whatever "
                "the number of ranks that wrote them");
  cmd->add_flag("--json", args->json, "print one JSON object");
  cmd->footer(
      "Exit codes: 0 verifies, 2 no such thing, 3 does not verify. A path called attention or "
      "positions is ./attention, ./positions.");
  add_inspect_attention(*cmd, session);
  add_inspect_positions(*cmd, session);
  // Runs after a subcommand's callback too.
  cmd->callback([args, cmd, &session] {
    if (cmd->get_subcommands().empty()) run_inspect(session, *args);
  });
}

}  // namespace farspan::app
