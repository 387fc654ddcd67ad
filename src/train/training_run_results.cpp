#include "train/generate.h"
#include "train/training_run.h"

namespace farspan {

// Also for a run that was killed after its last checkpoint and has nothing left to do.
void TrainingRun::write_results(RunStatus status) {
  if (!reports_) open_reports();
  reports_->end_bar();
  RunSummary summary;
  summary.status = status;
  summary.name = config_.name();
  summary.steps = step_;
  summary.tokens = tokens_;
  summary.skipped_tokens = data_->skipped_tokens(step_);
  summary.byte_tokens = data_->tokenizer().name == "bytes";
  if (peak_.flops_per_second > 0) {
    summary.peak_flops_per_rank = peak_.flops_per_second;
    summary.peak_method = peak_.how;
  }
  summary.parameters = parameters_;
  summary.ranks = world_.size();
  summary.data = mesh().data_size();
  summary.context = mesh().context_size();
  summary.device = backend_->description();
  const bool saved = saver_ && !saver_->newest().empty();
  summary.checkpoint = (saved ? saver_->newest() : resumed_from_).string();
  if (summary.byte_tokens && status == RunStatus::kFinished) summary.sample = sample();
  reports_->finish(std::move(summary), begin_, log_);
}

std::string TrainingRun::sample() {
  const auto tokenizer = make_tokenizer("bytes");
  const std::vector<std::int32_t> prompt = data_->prompt(32);
  if (prompt.empty()) return {};
  const Generated generated = generate(stage().config, engine_->model(), *backend_, prompt,
                                       {.max_new_tokens = 160,
                                        .temperature = 0.7,
                                        .top_p = 0.95,
                                        .seed = config_.seed(),
                                        .stop_token = data_->tokenizer().eos});
  std::string text;
  tokenizer->decode(prompt, text);
  tokenizer->decode(generated.tokens, text);
  return text;
}

void TrainingRun::print_profile() {
  if (!lead_) return;
  const double total = seconds_since(begin_);
  bool device_times = false;
  for (const auto& [name, sum] : trace_.sums()) device_times |= sum.device_seconds > 0;
  // Sections nest: an outer one's time holds that of its inner ones.
  log_.info("where the time went on rank 0 ({:.1f} s in all){}:", total,
            device_times ? "; host: to enqueue the work, device: to do it" : "");
  for (const auto& [name, sum] : trace_.sums()) {
    std::string row =
        fmt::format("  {:<26} {:>9.3f} s  {:>5.1f}%", name, sum.seconds, 100 * sum.seconds / total);
    if (device_times)
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
  log_.info("  {:<24} {:>12} bytes", "checkpoint", saver_->snapshot_bytes());
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

}  // namespace farspan
