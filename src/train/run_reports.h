// What a run leaves for people, written by rank 0 alone: metrics, events for TensorBoard, a bar or
// lines while it goes on, and in the end its summary and the curve of its loss.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "config/run_config.pb.h"
#include "core/log.h"
#include "train/metrics.h"
#include "train/progress.h"
#include "train/summary.h"
#include "train/tensorboard.h"

namespace farspan {

class RunReports {
 public:
  // Of a run that has done `first_step` steps: what an earlier start wrote after them is cut off.
  RunReports(const config::RunConfig& config, const std::filesystem::path& folder,
             std::int64_t first_step, bool quiet);

  void step(const TrainRow& row);
  void evaluation(const EvalRow& row);
  // A switch to another stage, after `step` steps.
  void switched(std::int64_t step, const std::string& text) {
    if (board_) board_->text("stages", step, text);
  }
  // So that a message does not run into the bar.
  void erase_bar() { progress_.erase(); }
  void end_bar() { progress_.finish(); }
  // Adds the losses of the whole run, the curve and the seconds since `begin`, and writes the
  // summary.
  void finish(RunSummary summary, std::chrono::steady_clock::time_point begin, Log& log);

 private:
  const std::filesystem::path folder_;
  MetricsFile metrics_;
  std::optional<TensorBoardFile> board_;
  Progress progress_;
};

}  // namespace farspan
