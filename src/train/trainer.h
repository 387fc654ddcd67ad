// A training run from a resolved configuration to its last step: data, memory, resume, the loop of
// steps, evaluation, checkpoints, metrics, and what is left behind in the run's folder.
//
//   TrainOutcome outcome = train(config, {.threads = 2, .version = "0.1.0"}, world);
//   return outcome.finished ? ExitCode::kOk : ExitCode::kResumable;
//
// Collective over `world`. Errors (core/error.h) leave every committed checkpoint as it was.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

#include "comm/communicator.h"
#include "config/run_config.pb.h"
#include "train/watchdog.h"

namespace farspan {

struct TrainOptions {
  enum class Resume {
    kAuto,   // the newest checkpoint of output_dir that verifies, or a new run
    kNever,  // a new run; checkpoints in output_dir are set aside, not deleted
    kPath,   // resume_path: a step folder, of this run or of another with the same model and data
  };
  Resume resume = Resume::kAuto;
  std::filesystem::path resume_path{};
  int threads = 1;           // CPU threads of this rank
  int ranks_on_machine = 1;  // that share its memory
  int local_rank = 0;        // place among them: takes the GPU of this number, modulo those visible
  std::string host_id{};     // tells machines apart, as NCCL does
  bool quiet = false;        // console shows warnings and errors only
  bool profile = false;      // print where the time went at the end
  std::string version{};     // of this build; ranks must agree on it
  std::function<bool()> stop_requested{};
  WatchdogTimeouts watchdog{};
};

struct TrainOutcome {
  bool finished = true;  // false: stopped on request, resumable
  std::int64_t step = 0;
};

TrainOutcome train(const config::RunConfig& config, const TrainOptions& options,
                   Communicator& world);

}  // namespace farspan
