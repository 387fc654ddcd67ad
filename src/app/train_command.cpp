// farspan train: a run, or a dry run that says what the run would need.
#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "app/command.h"
#include "app/environment.h"
#include "app/number_option.h"
#include "app/ranks.h"
#include "app/signals.h"
#include "comm/agree.h"
#include "config/curriculum.h"
#include "config/load.h"
#include "config/validate.h"
#include "core/log.h"
#include "kernels/backend.h"
#include "train/auto_sharding.h"
#include "train/dry_run.h"
#include "train/longest.h"
#include "train/memory.h"
#include "train/trainer.h"

namespace farspan::app {
namespace {

struct TrainArguments {
  std::string config;
  std::vector<std::string> overrides;
  std::string resume = "auto";
  bool dry_run = false;
  bool max_length = false;
  int ranks = 0;
  int local_ranks = 0;
  bool quiet = false;
  bool profile = false;
};

constexpr int kMostDryRanks = 64;  // beyond, ranks repeat themselves

// The ranks asked for: by --ranks, else in the way that a run would get them; 0: by the mesh.
int dry_ranks(const TrainArguments& args) {
  if (args.ranks > 0) return args.ranks;
  return args.local_ranks > 0 ? args.local_ranks : num_started_processes();
}

struct DryRun {
  config::RunConfig config;
  std::vector<StagePlan> stages;
  std::string assumed;  // what the data would decide
  StagesDryRun largest;
};

int num_ranks_of(const StagePlan& stage) {
  return static_cast<int>(stage.config.parallel().data() * stage.config.parallel().context());
}

DryRun dry_run_of(const TrainArguments& args, const std::vector<std::string>& overrides) {
  DryRun out{
      load_resolved(args.config, overrides, {.num_ranks = dry_ranks(args), .need_files = false})
          .config,
      {},
      {},
      {}};
  out.stages = plan_stages(out.config);
  for (StagePlan& stage : out.stages) {
    const config::Train& shape = stage.config.train();
    const std::string assumed =
        choose_sharding(stage.config, blank_batch(shape.micro_batch(), shape.sequence_length()));
    if (out.assumed.find(assumed) == std::string::npos)
      out.assumed += (out.assumed.empty() ? "" : "; ") + assumed;
  }
  const int num_ranks = num_ranks_of(out.stages.front());
  const auto need = [&](const DryRunReport& report) {
    return out.config.device() == "cuda" ? report.device_bytes() : report.total_bytes();
  };
  for (int rank = 0; rank < std::min(num_ranks, kMostDryRanks); ++rank) {
    StagesDryRun run = dry_run(out.stages, rank, num_ranks);
    if (rank == 0 || need(run.whole) > need(out.largest.whole)) out.largest = std::move(run);
  }
  return out;
}

// A line for each stage; where a cycle repeats, for one of each; of growing windows for both ends.
void print_stages(const DryRun& run) {
  const std::vector<std::string> lines = stage_lines(run.stages);
  const std::size_t shown = run.largest.stages.size();
  std::string which;
  if (shown < run.stages.size())
    which = run.stages.front().window > 0
                ? ", whose windows grow; the first and the last"
                : fmt::format(", of {} kind{}, one of each", shown, shown == 1 ? "" : "s");
  fmt::print("{} stages{}:\n", run.stages.size(), which);
  for (std::size_t i = 0; i < run.largest.stages.size(); ++i)
    fmt::print("  {}: {:.1f} MiB, {:.3g} TFLOP\n", lines[run.largest.stages[i]],
               static_cast<double>(run.largest.reports[i].total_bytes()) / (1 << 20),
               run.largest.reports[i].step_flops() / 1e12);
}

void print(const DryRun& run) {
  if (!run.assumed.empty())
    fmt::print("assumed, for sequences of one document each: {}\n", run.assumed);
  const config::Parallel& parallel = run.stages.front().config.parallel();
  if (run.stages.size() > 1) {
    print_stages(run);
    fmt::print("dry run of {} ranks; the rank that needs the most, in its largest stage:\n{}",
               num_ranks_of(run.stages.front()), to_text(run.largest.whole, run.config));
    return;
  }
  fmt::print("dry run of {} ranks (data {} x context {}); the rank that needs the most:\n{}",
             num_ranks_of(run.stages.front()), parallel.data(), parallel.context(),
             to_text(run.largest.whole, run.config));
}

// Of one sequence a step and data rank.
void print_max_length(const TrainArguments& args) {
  constexpr std::int64_t kMost = std::int64_t{1} << 28;
  constexpr std::int64_t kUnit = 256;  // of a rank: two pieces of a zigzag layout, 128 tokens each
  const LoadedConfig given = load_resolved(args.config, args.overrides,
                                           {.num_ranks = dry_ranks(args), .need_files = false});
  if (given.config.device_memory() == 0)
    throw Error(ExitCode::kUsage, {.what = "--max-length needs a limit to stay within",
                                   .where = "device_memory",
                                   .fix = "say what a rank's device has: device_memory=141GB"});
  const auto run = [&](std::int64_t length) {
    std::vector<std::string> overrides = args.overrides;
    overrides.push_back(fmt::format("train.sequence_length={}", length));
    overrides.push_back(
        fmt::format("train.batch_tokens={}", length * given.config.parallel().data()));
    overrides.emplace_back("train.micro_batch=1");
    overrides.emplace_back("curriculum=null");
    return dry_run_of(args, overrides);
  };
  const std::int64_t unit = kUnit * given.config.parallel().context();
  const std::int64_t longest = longest_fit(unit, kMost, [&](std::int64_t length) {
    return fits_device(run(length).largest.whole, given.config);
  });
  const DryRun fitting = run(std::max(longest, unit));
  if (longest > 0)
    fmt::print("longest train.sequence_length that fits device_memory, in multiples of {}: {}\n",
               unit, longest);
  print(fitting);
  check_memory(fitting.largest.whole, fitting.config, /*ranks_on_machine=*/0);
}

void run_dry(const TrainArguments& args) {
  if (!is_first_process()) return;  // under mpirun one copy of the answer is enough
  if (args.resume != "auto" || args.profile)
    fmt::print(stderr, "note: a dry run takes no notice of --resume and --profile\n");
  if (args.max_length) return print_max_length(args);
  const DryRun run = dry_run_of(args, args.overrides);
  print(run);
  check_memory(run.largest.whole, run.config, /*ranks_on_machine=*/0);
}

TrainOptions::Resume resume_mode(const std::string& text) {
  if (text == "auto") return TrainOptions::Resume::kAuto;
  if (text == "never") return TrainOptions::Resume::kNever;
  return TrainOptions::Resume::kPath;
}

// Says that there is no GPU before anything that can be mended elsewhere, such as data that were
// not made on a machine where the run cannot be.
void require_device(const TrainArguments& args) {
  const std::vector<DeviceKind> built = built_backends();
  if (std::find(built.begin(), built.end(), DeviceKind::kCuda) == built.end()) return;
  if (read_config_file(args.config, args.overrides).loaded.config.device() != "cuda") return;
  if (num_devices(DeviceKind::kCuda) == 0) make_backend({.kind = DeviceKind::kCuda});  // throws why
}

void run_training(Session& session, const TrainArguments& args) {
  int exit_code = 0;
  run_ranks(session, args.local_ranks, [&](Communicator& world, const RankEnvironment& rank) {
    LoadedConfig loaded;
    together(world, [&] {
      require_device(args);
      loaded = load_resolved(args.config, args.overrides, {.num_ranks = world.size()});
    });
    const bool lead = world.rank() == 0;
    if (lead && !args.quiet)
      for (const Issue& note : loaded.notes) fmt::print(stderr, "note: {}\n", to_text(note));
    // Thread ranks share the process's signals: one object, owned by rank 0, is enough for all.
    std::optional<StopRequest> stop;
    if (lead || world.transport() != "thread") stop.emplace(StopRequest::Options{.announce = lead});
    TrainOptions options;
    options.resume = resume_mode(args.resume);
    options.resume_path = args.resume;
    options.threads = rank.threads_per_rank;
    options.ranks_on_machine = rank.local_size;
    options.local_rank = rank.local_rank;
    options.host_id = rank.host_id;
    options.quiet = args.quiet;
    options.profile = args.profile;
    options.version = version_text();
    const config::Watchdog& limits = loaded.config.watchdog();
    options.watchdog = {.init = limits.init(),
                        .data = limits.data(),
                        .step = limits.step(),
                        .eval = limits.eval(),
                        .save = limits.save()};
    options.stop_requested = [&stop] { return stop && stop->requested(); };
    const TrainOutcome outcome = train(loaded.config, options, world);
    if (lead) exit_code = static_cast<int>(outcome.finished ? ExitCode::kOk : ExitCode::kResumable);
    if (!lead && world.transport() != "thread")
      session.exit_code = static_cast<int>(outcome.finished ? ExitCode::kOk : ExitCode::kResumable);
  });
  session.exit_code = std::max(session.exit_code, exit_code);
}

}  // namespace

void add_train_command(CLI::App& app, Session& session) {
  auto args = std::make_shared<TrainArguments>();
  CLI::App* cmd = app.add_subcommand(
      "train", "train a model: alone, with --local-ranks N, or under mpirun -np P");
  cmd->add_option("config", args->config, "configuration, YAML (keys: farspan config --keys)")
      ->required();
  cmd->add_option("overrides", args->overrides, "section.key=value, as in the YAML");
  cmd->add_option(
         "--resume", args->resume,
         "auto: from the newest checkpoint in output_dir that verifies; never: start anew; "
         "or the folder of a checkpoint")
      ->type_name("auto|never|PATH");
  cmd->add_flag("--dry-run", args->dry_run,
                "run one step on the dry backend and print memory, work and traffic");
  cmd->add_flag("--max-length", args->max_length,
                "find by dry runs the longest train.sequence_length that fits device_memory");
  cmd->add_option(
         "--ranks", args->ranks,
         "ranks of a dry run (default: --local-ranks, mpirun's, or what the mesh asks for)")
      ->check(whole_number(1, kMostInt));
  cmd->add_option("--local-ranks", args->local_ranks,
                  "run N ranks as threads of this process, without MPI")
      ->check(whole_number(1, kMostInt));
  cmd->add_flag("--quiet", args->quiet, "show warnings and errors only");
  cmd->add_flag("--profile", args->profile, "print where the time went at the end");
  cmd->callback([args, &session] {
    const bool dry = args->dry_run || args->max_length;
    if (args->ranks > 0 && !dry)
      throw Error(ExitCode::kUsage,
                  {.what = "--ranks belongs to --dry-run",
                   .fix = "start ranks with mpirun -np N, or --local-ranks N for threads"});
    if (dry)
      run_dry(*args);
    else
      run_training(session, *args);
  });
}

}  // namespace farspan::app
