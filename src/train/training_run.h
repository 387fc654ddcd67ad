// One training run: what train() of train/trainer.h does, in its parts.
//
//   training_run_setup.cpp    before the first step: device, data, memory, checkpoint
//   training_run.cpp          the loop: steps, evaluation, checkpoints
//   training_run_stages.cpp   stages of the curriculum: their ranks, and going from one to the next
//   training_run_gate.cpp     when a stage of a gated curriculum ends
//   training_run_results.cpp  after the last step, for people
#pragma once

#include <chrono>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "core/log.h"
#include "data/task_grid.h"
#include "optim/schedule.h"
#include "train/device_transport.h"
#include "train/flops.h"
#include "train/memory.h"
#include "train/run_reports.h"
#include "train/run_saver.h"
#include "train/scoring.h"
#include "train/trainer.h"
#include "train/training_data.h"

namespace farspan {

inline double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Who can be asked about, and told to end, collectives from another thread: the ranks of the host,
// and those of the devices while there are any.
class Reach {
 public:
  explicit Reach(Communicator& hosts) : hosts_(hosts) {}
  void add(Communicator* devices) {
    const std::lock_guard lock(mutex_);
    devices_ = devices;
  }
  std::string last_operation() const {
    const std::lock_guard lock(mutex_);
    if (devices_ == nullptr) return hosts_.last_operation();
    return fmt::format("{} on devices, {} on hosts", devices_->last_operation(),
                       hosts_.last_operation());
  }
  void abort(std::string_view why) {
    const std::lock_guard lock(mutex_);
    (devices_ != nullptr ? *devices_ : hosts_).abort(ExitCode::kCommunication, why);
  }

 private:
  Communicator& hosts_;
  mutable std::mutex mutex_;
  Communicator* devices_ = nullptr;
};

class TrainingRun {
 public:
  TrainingRun(const config::RunConfig& config, const TrainOptions& options, Communicator& world);
  ~TrainingRun() { reach_.add(nullptr); }  // before the devices' communicator goes
  TrainingRun(const TrainingRun&) = delete;
  TrainingRun& operator=(const TrainingRun&) = delete;

  TrainOutcome run();

 private:
  using Phase = Watchdog::Phase;

  void prepare();
  void make_device();
  void connect();
  void open_folder();
  void choose();
  void allocate();
  std::optional<std::filesystem::path> choose_checkpoint();
  void load(const std::optional<std::filesystem::path>& checkpoint);
  void load_origin(const std::filesystem::path& origin);
  void check_origin(const config::Model& saved, const std::filesystem::path& origin);
  void keep_origin(const config::RunConfig& saved, const std::filesystem::path& checkpoint);
  void check_compatible(const io::Manifest& manifest, const std::filesystem::path& checkpoint);
  void open_reports();

  bool one_step();
  void reserve(const PassMemory& memory);
  double exposed_seconds() const;
  std::int64_t ring_bytes_sent() const;
  void guard(const StepResult& result);
  std::vector<const Mesh*> make_meshes();
  const StagePlan& stage() const { return stages_[stage_]; }
  const Mesh& mesh() const { return *mesh_of_stage_[stage_]; }
  void log_stages();
  void enter_stage(std::size_t next);
  void enter_stage_if_due();
  std::vector<std::int64_t> stage_steps() const;
  MetricExtras step_extras(double exposed, std::int64_t ring_bytes) const;
  void report(const StepResult& result, double lr, double seconds, MetricExtras extras);
  EvalResult held_out();
  void evaluate();
  void evaluate_loss();
  void evaluate_passkey(std::int64_t length);
  void evaluate_perplexity(std::int64_t length);
  void check_evaluation() const;
  TaskGrid passkey_grid(std::int64_t length) const;
  std::vector<std::int64_t> perplexity_lengths() const;
  // The model as it is, for scores; of the stage at hand. Collective in all its uses, as in
  // passkey_accuracy(*live_model(), ...).
  std::unique_ptr<ScoringModel> live_model();
  void look_at_gate();
  double short_loss();
  double retrieval(std::int64_t length);
  void finish_stage();
  void restore_stages(const std::vector<std::int64_t>& done);
  void save();
  void finish_saving();

  void write_results(RunStatus status);
  std::string sample();
  void print_profile();

  config::RunConfig config_;  // as given; choose() fills what is left to the data
  const TrainOptions& options_;
  Communicator& world_;
  const bool lead_;
  const std::filesystem::path folder_;
  std::int64_t steps_;  // of the run; a gated one may end earlier
  const std::chrono::steady_clock::time_point begin_;
  Log log_;
  Reach reach_;
  Watchdog watchdog_;
  LearningRateSchedule schedule_;
  FlopModel flops_;
  std::unique_ptr<Backend> backend_;
  Trace trace_;
  DeviceTransport transport_;
  std::vector<StagePlan> stages_;  // their layouts are chosen by choose()
  std::size_t stage_ = 0;
  std::vector<std::unique_ptr<Mesh>> meshes_;  // one for each layout of ranks
  std::vector<const Mesh*> mesh_of_stage_;
  std::optional<TrainingData> data_;
  std::unique_ptr<Engine> engine_;
  DeviceLimit limit_;
  std::unique_ptr<RunReports> reports_;
  std::unique_ptr<RunSaver> saver_;  // after reports_, whose bar its messages clear
  MatmulPeak peak_;
  ArenaSizes sizes_;  // that the dry run found
  bool told_of_graphs_ = false;
  std::int64_t parameters_ = 0;
  double gate_loss_ = kUnknown;     // of short sequences, at the end of the stage before
  std::size_t overhead_bytes_ = 0;  // of the device, beside the arenas
  std::size_t present_bytes_ = 0;   // of those: what is taken before the run's own memory
  std::int64_t step_ = 0;
  std::int64_t tokens_ = 0;
  std::int64_t skipped_ = 0;
  std::filesystem::path resumed_from_;
};

}  // namespace farspan
