// metrics.jsonl: one JSON object per training step and per evaluation (docs/metrics.md has every
// key with its unit).
//
//   MetricsFile metrics(run / "metrics.jsonl");
//   metrics.cut_after(resumed_step);          // a new run: cut_after(-1)
//   metrics.write(TrainRow{.step = 51, .tokens = 835584, .loss = 3.2, ...});
//   metrics.write(EvalRow{.step = 51, .name = "loss", .value = 3.4});
//
// Each line is one write(2): a SIGKILL loses no line that was written. Since a run that is started
// again cuts what lies after the step it resumes from, the file holds each step once.
// Errors: as train/durable_file.h (disk full: Error(kExhausted), and no torn line is left behind).
#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "train/durable_file.h"

namespace farspan {

inline constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

// Further numbers of a line, in this order: {"exposed_comm_seconds", 0.012}.
using MetricExtras = std::vector<std::pair<std::string, double>>;

// One optimizer step. Numbers that are not finite are written as null.
struct TrainRow {
  std::int64_t step = 0;        // steps done, this one included: the first step writes 1
  std::int64_t tokens = 0;      // trained on since the start of the run, over all ranks
  double loss = kUnknown;       // nats per token: mean over the step's valid tokens, all ranks
  double grad_norm = kUnknown;  // of the whole model, before clipping
  double lr = kUnknown;         // the rate that this step applied
  double seconds = kUnknown;    // wall time of the step
  double tokens_per_second = kUnknown;  // over all ranks
  double tflops_per_rank = kUnknown;    // model FLOPs (train/flops.h) / seconds / ranks / 1e12
  double mfu = kUnknown;                // tflops_per_rank / the rank's peak, in [0, 1]
  std::int64_t sequence_length = 0;
  std::int64_t stage = 0;         // of the curriculum, from 0
  std::int64_t valid_tokens = 0;  // of this step: tokens with a label, all ranks
  std::int64_t skipped = 0;       // steps skipped so far for a loss or gradient that is not finite
  MetricExtras extras{};
};

struct EvalRow {
  std::int64_t step = 0;  // steps done before this evaluation
  std::string name;       // "loss": nats per token on held-out data
  double value = kUnknown;
  MetricExtras extras{};  // {"tokens", 65536}, {"seconds", 1.2}
};

// One line without its newline.
std::string to_json_line(const TrainRow& row);
std::string to_json_line(const EvalRow& row);

class MetricsFile {
 public:
  // Appends to what is there.
  explicit MetricsFile(std::filesystem::path path);

  struct Cut {
    std::int64_t kept = 0;
    std::int64_t dropped = 0;    // whole lines of later steps
    std::int64_t malformed = 0;  // dropped too: the line torn by a crash, or not ours
  };
  // Drops the lines with "step" > `step`: the state of the file when that step had just been done.
  // Atomic: a crash leaves the old file or the new one. Call it before the first write.
  Cut cut_after(std::int64_t step);

  void write(const TrainRow& row);
  void write(const EvalRow& row);
  const std::filesystem::path& path() const { return file_.path(); }

 private:
  AppendFile file_;
};

struct MetricsContent {
  std::vector<TrainRow> train;  // in the order of the file; null reads as NaN
  std::vector<EvalRow> eval;
};
// Reads a metrics.jsonl, also one that is being written (a torn last line is left out). Throws
// Error(kBadData) naming the line when anything else is not a line of ours.
MetricsContent read_metrics(const std::filesystem::path& path);

}  // namespace farspan
