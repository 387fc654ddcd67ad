#include "train/trainer.h"

#include <chrono>
#include <fstream>
#include <optional>

#include "comm/agree.h"
#include "config/load.h"
#include "config/validate.h"
#include "core/log.h"
#include "optim/schedule.h"
#include "train/auto_sharding.h"
#include "train/dry_run.h"
#include "train/flops.h"
#include "train/generate.h"
#include "train/memory.h"
#include "train/metrics.h"
#include "train/progress.h"
#include "train/run_checkpoint.h"
#include "train/summary.h"
#include "train/tensorboard.h"
#include "train/training_data.h"

namespace farspan {
namespace {

using Phase = Watchdog::Phase;
namespace fs = std::filesystem;

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// What only rank 0 writes: metrics, events, progress.
struct Reports {
  MetricsFile metrics;
  std::optional<TensorBoardFile> board;
  Progress progress;
};

class Trainer {
 public:
  Trainer(const config::RunConfig& config, const TrainOptions& options, Communicator& world)
      : config_(config),
        options_(options),
        world_(world),
        lead_(world.rank() == 0),
        folder_(config.output_dir()),
        steps_(config.train().steps()),
        begin_(std::chrono::steady_clock::now()),
        log_({.console = lead_, .quiet = options.quiet}),
        watchdog_(
            {.rank = world.rank(),
             .timeouts = options.watchdog,
             .last_operation = [&world] { return world.last_operation(); },
             .abort =
                 [&world](std::string_view why) { world.abort(ExitCode::kCommunication, why); }}),
        schedule_(LearningRateSchedule::from(config.schedule(), config.optimizer().lr(), steps_)),
        flops_(config.model()) {}

  TrainOutcome run() {
    {
      auto section = watchdog_.enter(Phase::kInit, 0);
      prepare();
    }
    if (step_ >= steps_) {
      log_.info("{} is already at step {}: nothing to do (raise train.steps to go on)",
                folder_.string(), step_);
      together(world_, [&] {
        if (lead_ && !summary_is_of_finished(folder_ / "summary.json", step_))
          write_results(RunStatus::kFinished);
      });
      return {.finished = true, .step = step_};
    }
    data_->start(step_);
    bool stop = false;
    while (step_ < steps_ && !stop) stop = one_step();
    const bool finished = step_ >= steps_;
    finish_saving();
    if (!finished)
      log_.info("stopped on request at step {} of {}; start again to resume", step_, steps_);
    {
      auto section = watchdog_.enter(Phase::kEval, step_);
      together(world_, [&] {
        if (lead_) write_results(finished ? RunStatus::kFinished : RunStatus::kStopped);
      });
    }
    if (options_.profile) print_profile();
    return {.finished = finished, .step = step_};
  }

 private:
  // ---- before the first step

  void prepare() {
    agree_on(world_, "configuration", to_yaml(config_));
    agree_on(world_, "version of farspan", options_.version);
    together(world_, [&] {
      if (lead_) open_folder();
    });
    together(world_, [&] { data_.emplace(config_); });
    choose();
    mesh_.emplace(make_mesh(config_, world_));
    allocate();
    const std::optional<fs::path> checkpoint = choose_checkpoint();
    together(world_, [&] { load(checkpoint); });
    CheckpointWriter::Options writer{.folder = folder_ / "checkpoints"};
    writer.keep_last = static_cast<int>(config_.checkpoint().keep_last());
    writer.keep_every = config_.checkpoint().keep_every();
    writer.config_yaml = to_yaml(config_);
    writer.code_version = options_.version;
    if (step_ >= steps_) return;
    writer_ = std::make_unique<CheckpointWriter>(world_, std::move(writer), log_);
    // Only now: the writer holds the folder's lock, so these are no other run's that still goes on.
    together(world_, [&] {
      if (lead_ && options_.resume != TrainOptions::Resume::kAuto)
        set_aside_checkpoints_after(folder_ / "checkpoints", checkpoint ? step_ : -1, log_);
    });
    snapshot_.emplace(*engine_, world_);
    log_.info("{}", peak_.description());
    together(world_, [&] {
      if (lead_) open_reports();
    });
  }

  void open_folder() {
    std::error_code ec;
    fs::create_directories(folder_, ec);
    const fs::path probe = folder_ / ".writable";
    const bool writable = !ec && std::ofstream(probe).put('x').flush().good();
    fs::remove(probe, ec);
    if (!writable)
      throw Error(ExitCode::kUsage, {.what = "cannot write into the run's folder",
                                     .where = folder_.string(),
                                     .fix = "choose a writable output_dir, or free disk space"});
    log_.attach_file(folder_ / "run.log");
  }

  // What the configuration leaves to the data, before anything depends on it.
  void choose() {
    std::string why;
    together(world_, [&] {
      if (sharding_is_automatic(config_)) why = choose_sharding(config_, data_->first_batch());
    });
    if (why.empty()) return;
    agree_on(world_, "choice of layout and strategy", why);
    log_.info("{}", why);
  }

  void allocate() {
    const DryRunReport report = dry_run(config_, world_.rank(), world_.size());
    parameters_ = report.parameters;
    overhead_bytes_ = report.overhead_bytes();
    together(world_, [&] { check_memory(report, config_, options_.ranks_on_machine); });
    together(world_, [&] { data_->cut_for(config_, *mesh_, report.sizes); });
    // A graph is one call: its modules could not be told apart.
    if (options_.profile && config_.train().cuda_graphs() == "auto")
      config_.mutable_train()->set_cuda_graphs("off");
    together(world_, [&] {
      backend_ =
          make_backend({.kind = config_.device() == "cuda" ? DeviceKind::kCuda : DeviceKind::kCpu,
                        .device_index = 0,
                        .num_threads = options_.threads,
                        .attention_kernel = attention_kernel(config_)});
    });
    // Before the engine takes its memory, which leaves no room for this. All ranks at once, as they
    // will compute.
    world_.barrier();
    peak_ = measure_matmul_peak(*backend_, compute_dtype(config_));
    together(world_, [&] {
      engine_ = std::make_unique<Engine>(config_, *backend_, *mesh_, report.sizes, trace_);
      trace_.attach(backend_->make_trace_sink(options_.profile));
    });
    log_.info("{}: {:.2f}M parameters, {} ranks (data {} x context {}), {:.1f} MiB per rank",
              config_.name(), static_cast<double>(report.parameters) / 1e6, world_.size(),
              mesh_->data_size(), mesh_->context_size(),
              static_cast<double>(report.total_bytes()) / (1 << 20));
    log_.info("{}", backend_->description());
    log_.info("{}", schedule_.description());
  }

  // Rank 0 looks; the others hear which step.
  std::optional<fs::path> choose_checkpoint() {
    const fs::path checkpoints = folder_ / "checkpoints";
    if (options_.resume == TrainOptions::Resume::kPath) return options_.resume_path;
    std::int64_t step = -1;
    fs::path found;
    together(world_, [&] {
      if (!lead_) return;
      if (options_.resume == TrainOptions::Resume::kNever) return;
      if (const auto latest = find_latest_checkpoint(checkpoints, log_)) {
        found = *latest;
        step = CheckpointReader(found, false).manifest().step();
      } else if (!list_checkpoints(checkpoints).empty()) {
        // Starting anew would overwrite them and the metrics: not without being asked.
        throw Error(ExitCode::kBadData,
                    {.what = "the run has checkpoints, and none of them verifies",
                     .where = checkpoints.string(),
                     .fix = "restore one from a copy (the warnings above name what is damaged), or "
                            "start anew with --resume never, which sets them aside"});
      }
    });
    world_.broadcast(host_tensor(&step, {1}), 0, backend_->stream()).wait();
    if (step < 0) return std::nullopt;
    for (const CheckpointFolder& folder : list_checkpoints(checkpoints))
      if (folder.step == step) return folder.path;
    throw Error(
        ExitCode::kBadData,
        {.what = fmt::format("rank {} does not see the checkpoint of step {}", world_.rank(), step),
         .where = checkpoints.string(),
         .fix = "put output_dir on a file system that all machines share"});
  }

  void load(const std::optional<fs::path>& checkpoint) {
    if (!checkpoint) {
      engine_->initialize();
      return;
    }
    const CheckpointReader reader(*checkpoint);
    check_compatible(reader.manifest(), *checkpoint);
    restore(*engine_, reader);
    const io::TrainState& state = reader.manifest().state();
    step_ = state.step();
    tokens_ = state.tokens();
    newest_checkpoint_ = *checkpoint;
    skipped_ = state.skipped_steps();
    log_.info("resuming from {} (step {}, {} tokens)", checkpoint->string(), step_, tokens_);
  }

  void check_compatible(const io::Manifest& manifest, const fs::path& checkpoint) const {
    const LoadedConfig saved =
        parse_config(manifest.config_yaml(), (checkpoint / "manifest.pb").string(), {});
    std::vector<std::string> conflicts = resume_conflicts(saved.config, config_);
    if (manifest.state().data_fingerprint() != data_->fingerprint())
      conflicts.push_back("data.train: the token stores hold other text than when the run began");
    if (conflicts.empty()) return;
    std::string what =
        "this configuration cannot continue the run: it differs in what must not change";
    for (const std::string& c : conflicts) what += "\n    " + c;
    throw Error(
        ExitCode::kUsage,
        {.what = what,
         .where = checkpoint.string(),
         .fix = "restore these keys, choose another output_dir, or start anew with --resume "
                "never"});
  }

  void open_reports() {
    replace_file(folder_ / "config.resolved.yaml", to_yaml(config_));
    reports_.reset(new Reports{
        .metrics = MetricsFile(folder_ / "metrics.jsonl"),
        .board = {},
        .progress =
            Progress({.total_steps = steps_,
                      .first_step = step_,
                      .style = options_.quiet ? ProgressStyle::kNone : ProgressStyle::kAuto})});
    reports_->metrics.cut_after(step_ == 0 ? -1 : step_);
    if (config_.logging().tensorboard()) reports_->board.emplace(folder_, step_ + 1);
    log_.before_console([this] { reports_->progress.erase(); });
  }

  // ---- the loop

  // One optimizer step and whatever is due after it; true to stop on request.
  bool one_step() {
    const auto begin = std::chrono::steady_clock::now();
    std::vector<MicroBatch> micro_batches;
    {
      auto section = watchdog_.enter(Phase::kData, step_);
      auto traced = trace_.section("data.wait");
      together(world_, [&] {
        micro_batches = data_->next();
        for (const MicroBatch& m : micro_batches) reserve(m.memory);
      });
    }
    auto section = watchdog_.enter(Phase::kStep, step_);
    const double exposed_before = exposed_seconds();
    const std::int64_t bytes_before = ring_bytes_sent();
    const double lr = schedule_.at(step_);
    engine_->train_step(micro_batches, lr,
                        {.stop_requested = options_.stop_requested && options_.stop_requested(),
                         .save_failed = save_failed()});
    const StepResult result = engine_->read_step();
    trace_.collect();
    ++step_;
    if (const std::string& why = engine_->graphs().refusal(); !why.empty() && !told_of_graphs_) {
      log_.info("passes are not started as graphs: {}", why);
      told_of_graphs_ = true;
    }
    tokens_ += config_.train().batch_tokens();
    guard(result);
    for (const std::string& note : backend_->take_notes()) log_.info("{}", note);
    if (step_ % config_.logging().every() == 0 || step_ == steps_)
      report(result, lr, seconds_since(begin),
             {{"exposed_comm_seconds", exposed_seconds() - exposed_before},
              {"ring_bytes_sent", static_cast<double>(ring_bytes_sent() - bytes_before)}});
    if (result.flags.save_failed) finish_saving();  // throws the error on every rank
    const bool stop = result.flags.stop_requested;
    const auto due = [&](std::int64_t every) { return every > 0 && step_ % every == 0; };
    if (due(config_.evaluation().every()) || (step_ == steps_ && config_.evaluation().every() > 0))
      evaluate();
    if (due(config_.checkpoint().every()) || step_ == steps_ || stop) save();
    return stop;
  }

  // Batches differ in what they need where the layout or the mask follows the documents.
  void reserve(const PassMemory& memory) {
    check_growth(engine_->device_bytes_with(memory) + overhead_bytes_, config_);
    if (engine_->reserve(memory))
      log_.info(
          "step {}: a batch needs more memory than the first look said: {:.1f} MiB for passes",
          step_ + 1,
          static_cast<double>(memory.activations + memory.scratch + memory.batch + memory.host) /
              (1 << 20));
  }

  double exposed_seconds() const {
    const auto it = trace_.sums().find("attention.exposed");
    if (it == trace_.sums().end()) return 0.0;
    // The host waits where ranks exchange through it, the device's queue where they do not.
    return std::max(it->second.seconds, it->second.device_seconds);
  }

  std::int64_t ring_bytes_sent() const {
    return mesh_->context_counters().of(Collective::kExchange).bytes_sent;
  }

  // The gate itself is on the device (ClipArgs); here the skips are counted and bounded.
  void guard(const StepResult& result) {
    if (result.skipped_steps == skipped_) return;
    skipped_ = result.skipped_steps;
    const IndexRange samples = data_->samples_of(step_ - 1);
    log_.warn(
        "step {}: loss or gradient is not finite (loss {}, gradient norm {}); the weights are "
        "untouched. Samples {}-{}; {} of at most {} skips",
        step_, result.loss(), result.grad_norm, samples.begin, samples.end - 1, skipped_,
        config_.train().max_skipped_steps());
    together(world_, [&] {
      if (lead_ && skipped_ > config_.train().max_skipped_steps())
        throw Error(
            ExitCode::kNumeric,
            {.what = fmt::format("{} optimizer steps were skipped because loss or gradient was "
                                 "not finite; train.max_skipped_steps is {}",
                                 skipped_, config_.train().max_skipped_steps()),
             .where = fmt::format("step {}", step_),
             .fix = "lower optimizer.lr or grad_clip, use a longer warmup, or look at the "
                    "samples named in run.log"});
    });
  }

  void report(const StepResult& result, double lr, double seconds, MetricExtras extras) {
    if (!lead_) return;
    const std::int64_t batch = config_.train().batch_tokens();
    const double flops = flops_.step(batch, result.visible_pairs);
    const double per_rank = flops / seconds / world_.size();
    const TrainRow row{.step = step_,
                       .tokens = tokens_,
                       .loss = result.loss(),
                       .grad_norm = result.grad_norm,
                       .lr = lr,
                       .seconds = seconds,
                       .tokens_per_second = static_cast<double>(batch) / seconds,
                       .tflops_per_rank = per_rank / 1e12,
                       .mfu = per_rank / peak_.flops_per_second,
                       .sequence_length = config_.train().sequence_length(),
                       .stage = 0,
                       .valid_tokens = static_cast<std::int64_t>(result.valid_tokens),
                       .skipped = skipped_,
                       .extras = std::move(extras)};
    reports_->metrics.write(row);
    if (reports_->board) reports_->board->write(row);
    reports_->progress.step({.step = step_,
                             .loss = row.loss,
                             .lr = lr,
                             .tokens_per_second = row.tokens_per_second,
                             .mfu = row.mfu});
  }

  void evaluate() {
    auto section = watchdog_.enter(Phase::kEval, step_);
    const auto begin = std::chrono::steady_clock::now();
    for (std::int64_t i = 0; i < data_->num_evaluation_batches(); ++i) {
      MicroBatch micro;
      together(world_, [&] {
        micro = data_->evaluation_batch(i);
        reserve(micro.memory);
      });
      engine_->evaluate(micro);
    }
    const EvalResult result = engine_->read_evaluation();
    if (!lead_) return;
    const EvalRow row{
        .step = step_,
        .name = "loss",
        .value = result.loss(),
        .extras = {{"tokens", result.valid_tokens}, {"seconds", seconds_since(begin)}}};
    reports_->metrics.write(row);
    if (reports_->board) reports_->board->write(row);
    log_.info("step {}: held-out loss {:.4f} nats per token ({:.0f} tokens)", step_, row.value,
              result.valid_tokens);
  }

  // ---- checkpoints

  void save() {
    auto section = watchdog_.enter(Phase::kSave, step_);
    finish_saving();  // the snapshot's memory must be free
    io::TrainState state;
    state.set_step(step_);
    state.set_applied_steps(step_ - skipped_);
    state.set_skipped_steps(skipped_);
    state.set_tokens(tokens_);
    state.set_samples(data_->samples_of(step_).begin);
    state.set_stage(0);
    state.set_stage_first_sample(0);
    state.set_seed(config_.seed());
    state.set_data_fingerprint(data_->fingerprint());
    auto traced = trace_.section("checkpoint.snapshot");
    writer_->save(step_, snapshot_->take(*engine_), state);
  }

  // True when the save under way has failed on this rank; its error is kept for finish_saving().
  bool save_failed() {
    if (!writer_ || save_error_) return save_error_ != nullptr;
    try {
      if (const auto outcome = writer_->poll()) announce(*outcome);
    } catch (const Error&) {
      save_error_ = std::current_exception();
    }
    return save_error_ != nullptr;
  }

  // Waits for the save under way; all ranks call it at the same place and all throw if it failed.
  void finish_saving() {
    auto section = watchdog_.enter(Phase::kSave, step_);
    if (save_error_) std::rethrow_exception(save_error_);
    if (const auto outcome = writer_->wait()) announce(*outcome);
  }

  void announce(const SaveOutcome& outcome) {
    newest_checkpoint_ = outcome.path;
    log_.info("saved {} ({:.1f} MiB in {:.2f} s)", outcome.path.string(),
              static_cast<double>(outcome.bytes) / (1 << 20), outcome.seconds);
  }

  // ---- after the last step

  // Also for a run that was killed after its last checkpoint and has nothing left to do.
  void write_results(RunStatus status) {
    if (!reports_) open_reports();
    reports_->progress.finish();
    RunSummary summary;
    summary.status = status;
    summary.name = config_.name();
    summary.steps = step_;
    summary.tokens = tokens_;
    summary.byte_tokens = data_->tokenizer().name == "bytes";
    if (peak_.flops_per_second > 0) {
      summary.peak_flops_per_rank = peak_.flops_per_second;
      summary.peak_method = peak_.how;
    }
    summary.parameters = parameters_;
    summary.ranks = world_.size();
    summary.data = mesh_->data_size();
    summary.context = mesh_->context_size();
    summary.device = backend_->description();
    summary.checkpoint = newest_checkpoint_.string();
    add_losses(summary, read_metrics(reports_->metrics.path()));
    if (summary.byte_tokens && status == RunStatus::kFinished) summary.sample = sample();
    if (reports_->board && !summary.sample.empty())
      reports_->board->text("sample", step_, summary.sample);
    const fs::path plot = folder_ / "loss.svg";
    try {
      draw_loss_curve(reports_->metrics.path(), plot, config_.name(), summary.byte_tokens);
      summary.plot = plot.string();
    } catch (const Error& e) {
      log_.warn("the loss curve was not drawn: {}", e.what());
    }
    summary.seconds = seconds_since(begin_);
    write_summary(folder_ / "summary.json", summary);
    log_.info("{} step {}: loss {:.4f} -> {:.4f} nats per token, {:.0f} tokens/s; {}",
              status == RunStatus::kFinished ? "finished" : "stopped at", step_, summary.loss_first,
              summary.loss_last, summary.tokens_per_second, (folder_ / "summary.json").string());
  }

  std::string sample() {
    const auto tokenizer = make_tokenizer("bytes");
    const std::vector<std::int32_t> prompt = data_->prompt(32);
    if (prompt.empty()) return {};
    const auto ids = generate(config_, engine_->model(), *backend_, prompt,
                              {.max_new_tokens = 160,
                               .temperature = 0.7,
                               .top_p = 0.95,
                               .seed = config_.seed(),
                               .stop_token = data_->tokenizer().eos});
    std::string text;
    tokenizer->decode(prompt, text);
    tokenizer->decode(ids, text);
    return text;
  }

  void print_profile() {
    if (!lead_) return;
    const double total = seconds_since(begin_);
    bool device = false;
    for (const auto& [name, sum] : trace_.sums()) device |= sum.device_seconds > 0;
    // Sections nest: an outer one's time holds that of its inner ones.
    log_.info("where the time went on rank 0 ({:.1f} s in all){}:", total,
              device ? "; host: to enqueue the work, device: to do it" : "");
    for (const auto& [name, sum] : trace_.sums()) {
      std::string row = fmt::format("  {:<26} {:>9.3f} s  {:>5.1f}%", name, sum.seconds,
                                    100 * sum.seconds / total);
      if (device)
        row += fmt::format("  device {:>9.3f} s  {:>5.1f}%", sum.device_seconds,
                           100 * sum.device_seconds / total);
      log_.info("{}  {} times", row, sum.calls);
    }
    if (engine_->graphs().started() > 0)
      log_.info("{} passes were started as graphs, of {} recorded", engine_->graphs().started(),
                engine_->graphs().recorded());
    log_.info("memory in use at its peak, by arena (a dry run predicts the same):");
    for (const Arena* arena : engine_->arenas())
      log_.info("  {:<24} {:>12} bytes", arena->name(), arena->high_water());
    log_.info("  {:<24} {:>12} bytes", "checkpoint", snapshot_->bytes());
    const Device& device = backend_->device();
    const auto memory = device.memory();
    if (!memory) return;
    // What the GPU holds beyond `taken` is CUDA's and NCCL's own, and other programs'.
    log_.info("  {:<24} {:>12} bytes, at most {}", "taken of the device", device.taken().now,
              device.taken().most);
    log_.info("  {:<24} {:>12} bytes", "in use on the device", memory->total - memory->free);
    log_.info("  {:<24} {:>12} bytes", "predicted by a dry run",
              engine_->device_bytes_with({}) + overhead_bytes_);
  }

  config::RunConfig config_;  // as given; choose() fills what is left to the data
  const TrainOptions& options_;
  Communicator& world_;
  const bool lead_;
  const fs::path folder_;
  const std::int64_t steps_;
  const std::chrono::steady_clock::time_point begin_;
  Log log_;
  Trace trace_;
  Watchdog watchdog_;
  LearningRateSchedule schedule_;
  FlopModel flops_;
  std::optional<Mesh> mesh_;
  std::optional<TrainingData> data_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Engine> engine_;
  std::optional<Snapshot> snapshot_;
  std::unique_ptr<Reports> reports_;
  // After snapshot_, whose memory its thread reads, and reports_, whose bar its messages clear.
  std::unique_ptr<CheckpointWriter> writer_;
  std::exception_ptr save_error_;
  MatmulPeak peak_;
  bool told_of_graphs_ = false;
  std::int64_t parameters_ = 0;
  std::size_t overhead_bytes_ = 0;  // of the device, beside the arenas
  std::int64_t step_ = 0;
  std::int64_t tokens_ = 0;
  std::int64_t skipped_ = 0;
  fs::path newest_checkpoint_;
};

}  // namespace

TrainOutcome train(const config::RunConfig& config, const TrainOptions& options,
                   Communicator& world) {
  return Trainer(config, options, world).run();
}

}  // namespace farspan
