#include "train/run_reports.h"

#include "core/error.h"

namespace farspan {

RunReports::RunReports(const config::RunConfig& config, const std::filesystem::path& folder,
                       std::int64_t first_step, bool quiet)
    : folder_(folder),
      metrics_(folder / "metrics.jsonl"),
      progress_({.total_steps = config.train().steps(),
                 .first_step = first_step,
                 .style = quiet ? ProgressStyle::kNone : ProgressStyle::kAuto}) {
  metrics_.cut_after(first_step == 0 ? -1 : first_step);
  if (config.logging().tensorboard()) board_.emplace(folder, first_step + 1);
}

void RunReports::step(const TrainRow& row) {
  metrics_.write(row);
  if (board_) board_->write(row);
  progress_.step({.step = row.step,
                  .loss = row.loss,
                  .lr = row.lr,
                  .tokens_per_second = row.tokens_per_second,
                  .mfu = row.mfu});
}

void RunReports::evaluation(const EvalRow& row) {
  metrics_.write(row);
  if (board_) board_->write(row);
}

void RunReports::finish(RunSummary summary, std::chrono::steady_clock::time_point begin, Log& log) {
  add_losses(summary, read_metrics(metrics_.path()));
  if (board_ && !summary.sample.empty()) board_->text("sample", summary.steps, summary.sample);
  const std::filesystem::path plot = folder_ / "loss.svg";
  try {
    draw_loss_curve(metrics_.path(), plot, summary.name, summary.byte_tokens);
    summary.plot = plot.string();
  } catch (const Error& e) {
    log.warn("the loss curve was not drawn: {}", e.what());
  }
  summary.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  write_summary(folder_ / "summary.json", summary);
  log.info("{} step {}: {}, {:.0f} tokens/s; {}",
           summary.status == RunStatus::kFinished ? "finished" : "stopped at", summary.steps,
           losses_text(summary), summary.tokens_per_second, (folder_ / "summary.json").string());
  if (const std::string text = evaluations_text(summary); !text.empty()) log.info("{}", text);
}

}  // namespace farspan
