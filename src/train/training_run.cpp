#include "train/training_run.h"

#include <algorithm>
#include <cmath>

#include "comm/agree.h"
#include "config/load.h"

namespace farspan {

TrainingRun::TrainingRun(const config::RunConfig& config, const TrainOptions& options,
                         Communicator& world)
    : config_(config),
      options_(options),
      world_(world),
      lead_(world.rank() == 0),
      folder_(config.output_dir()),
      steps_(config.train().steps()),
      begin_(std::chrono::steady_clock::now()),
      log_({.console = lead_, .quiet = options.quiet}),
      reach_(world),
      watchdog_({.rank = world.rank(),
                 .timeouts = options.watchdog,
                 .last_operation = [this] { return reach_.last_operation(); },
                 .abort = [this](std::string_view why) { reach_.abort(why); }}),
      schedule_(LearningRateSchedule::from(config.schedule(), config.optimizer().lr(), steps_)),
      flops_(config.model()),
      stages_(plan_stages(config)) {}

TrainOutcome TrainingRun::run() {
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

// One optimizer step and whatever is due after it; true to stop on request.
bool TrainingRun::one_step() {
  enter_stage_if_due();
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
  const double lr = schedule_.at(step_) * stage().lr_factor;
  engine_->train_step(micro_batches, lr,
                      {.stop_requested = options_.stop_requested && options_.stop_requested(),
                       .save_failed = saver_->failed()});
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
           step_extras(exposed_seconds() - exposed_before, ring_bytes_sent() - bytes_before));
  if (result.flags.save_failed) finish_saving();  // throws the error on every rank
  const bool stop = result.flags.stop_requested;
  const auto due = [&](std::int64_t every) { return every > 0 && step_ % every == 0; };
  if (due(config_.evaluation().every()) || (step_ == steps_ && config_.evaluation().every() > 0))
    evaluate();
  if (config_.curriculum().type() == "gated") look_at_gate();
  if (due(config_.checkpoint().every()) || step_ == steps_ || stop) save();
  return stop;
}

// Batches differ in what they need where the layout or the mask follows the documents.
void TrainingRun::reserve(const PassMemory& memory) {
  const std::size_t device_bytes = engine_->device_bytes_with(memory) + overhead_bytes_;
  check_growth(device_bytes, config_);
  check_limit(device_bytes - present_bytes_, limit_);
  if (engine_->reserve(memory))
    log_.info(
        "step {}: a batch needs more memory than the first look said: {:.1f} MiB for passes",
        step_ + 1,
        static_cast<double>(memory.activations + memory.scratch + memory.batch + memory.host) /
            (1 << 20));
}

double TrainingRun::exposed_seconds() const {
  const auto it = trace_.sums().find("attention.exposed");
  if (it == trace_.sums().end()) return 0.0;
  // The host waits where ranks exchange through it, the device's queue where they do not.
  return std::max(it->second.seconds, it->second.device_seconds);
}

std::int64_t TrainingRun::ring_bytes_sent() const {
  return mesh().context_counters().of(Collective::kExchange).bytes_sent;
}

// The gate itself is on the device (ClipArgs); here the skips are counted and bounded.
void TrainingRun::guard(const StepResult& result) {
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

MetricExtras TrainingRun::step_extras(double exposed, std::int64_t ring_bytes) const {
  MetricExtras out{{"exposed_comm_seconds", exposed},
                   {"ring_bytes_sent", static_cast<double>(ring_bytes)}};
  if (stage().window > 0) out.emplace_back("window", static_cast<double>(stage().window));
  return out;
}

void TrainingRun::report(const StepResult& result, double lr, double seconds, MetricExtras extras) {
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
                     .sequence_length = stage().config.train().sequence_length(),
                     .stage = stage().index,
                     .valid_tokens = static_cast<std::int64_t>(result.valid_tokens),
                     .skipped = skipped_,
                     .extras = std::move(extras)};
  reports_->step(row);
}

void TrainingRun::save() {
  auto section = watchdog_.enter(Phase::kSave, step_);
  io::TrainState state;
  state.set_step(step_);
  state.set_applied_steps(step_ - skipped_);
  state.set_skipped_steps(skipped_);
  state.set_tokens(tokens_);
  state.set_samples(data_->samples_of(step_).begin);
  const std::size_t next = stage_at(stages_, step_);
  state.set_stage(static_cast<int>(next));
  state.set_stage_first_sample(data_->stage_start(next).first_sample);
  for (const std::int64_t steps : stage_steps()) state.add_stage_steps(steps);
  if (std::isfinite(gate_loss_)) state.set_gate_loss(gate_loss_);
  state.set_seed(config_.seed());
  state.set_data_fingerprint(data_->fingerprint(stages_trained(stage_steps())));
  auto traced = trace_.section("checkpoint.snapshot");
  saver_->save(*engine_, state);
}

void TrainingRun::finish_saving() {
  auto section = watchdog_.enter(Phase::kSave, step_);
  saver_->finish();
}

}  // namespace farspan
