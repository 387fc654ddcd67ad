// summary.json: what a run came to, written whole when it ends (docs/metrics.md has every key).
//
//   RunSummary summary{.name = "quickstart", .status = RunStatus::kFinished, ...};
//   add_losses(summary, read_metrics(run / "metrics.jsonl"));
//   draw_loss_curve(run / "metrics.jsonl", run / "loss.svg");
//   write_summary(run / "summary.json", summary);
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "train/metrics.h"

namespace farspan {

enum class RunStatus : std::uint8_t {
  kFinished,  // all steps done
  kStopped    // on request, before the last step; resumable
};

// What a stage of the curriculum came to.
struct StageSummary {
  std::int64_t stage = 0, sequence_length = 0;
  std::int64_t steps = 0, tokens = 0;   // of this stage
  double loss_last = kUnknown;          // of its last step
  double tokens_per_second = kUnknown;  // median
};

// What a loss was measured in: losses of different lengths or windows say little of one another.
struct MeasuredIn {
  std::int64_t sequence_length = 0;  // tokens; 0: not known
  std::int64_t window = 0;           // of curriculum.type: window; 0: none
  bool operator==(const MeasuredIn&) const = default;
};

// Numbers that are not known are NaN (or empty texts) and become null.
struct RunSummary {
  std::string name;
  RunStatus status = RunStatus::kFinished;
  std::int64_t steps = 0;             // done in all, over every start of the run
  std::int64_t tokens = 0;            // trained on in all
  std::int64_t skipped_tokens = 0;    // passed over on purpose (positions.source_window)
  double loss_first = kUnknown;       // nats per token, of the first step
  double loss_last = kUnknown;        // of the last step
  double loss_last_mean = kUnknown;   // mean of the last min(10, n) steps at the last one's length
  double eval_loss_first = kUnknown;  // held out, nats per token
  double eval_loss_last = kUnknown;
  MeasuredIn loss_first_in, loss_last_in, eval_loss_first_in, eval_loss_last_in;
  // A token is one byte: losses are given in bits per byte (loss / ln 2) as well.
  bool byte_tokens = false;
  double tokens_per_second = kUnknown;    // all ranks; median over the run's steps
  double mfu = kUnknown;                  // in [0, 1]; likewise
  double peak_flops_per_rank = kUnknown;  // what `mfu` refers to, FLOP/s
  std::string peak_method;                // "measured: bf16 matmul 1024x1024x1024"
  double seconds = kUnknown;              // wall time of this start
  std::int64_t parameters = 0;
  int ranks = 1;
  int data = 1;                      // data-parallel groups
  int context = 1;                   // ranks that share a sequence
  std::vector<StageSummary> stages;  // in order; one without a curriculum
  // The last evaluation at each length: rows of metrics.jsonl named passkey@1024, perplexity@1024.
  std::vector<EvalRow> evaluations;
  std::string device;      // "cpu: avx512_bf16 attention, oneDNN 2.6.3 matmul, 2 threads"
  std::string checkpoint;  // newest one, its path
  std::string sample;      // generated text; bytes that are not UTF-8 become U+FFFD
  std::string plot;        // path of the loss curve
};

// Fills the losses, tokens_per_second, mfu, stages and evaluations from the metrics of the whole
// run.
// Evaluations are those named "loss". Steps without a finite loss are passed over.
void add_losses(RunSummary& summary, const MetricsContent& metrics);

std::string to_json(const RunSummary& summary);
// "loss 5.1000 -> 3.2000 nats per token", with what each was measured in where that differs.
std::string losses_text(const RunSummary& summary);
// "passkey@256 1, passkey@1024 0.85 after step 100": the newest of summary.evaluations; "" where
// there are none.
std::string evaluations_text(const RunSummary& summary);
// Atomic. Errors: as train/durable_file.h.
void write_summary(const std::filesystem::path& path, const RunSummary& summary);
// True when `path` is the summary of a run that finished at `step`: not one of an earlier, shorter
// or stopped start of it, nor damaged.
bool summary_is_of_finished(const std::filesystem::path& path, std::int64_t step);

// Draws the training loss (thin: every step; bold: smoothed) and the held-out loss over the tokens
// trained on, as .svg or .png, with a line where a stage ended. Throws Error(kBadData) when the
// metrics hold no step with a finite loss, and the errors of core/plot.h (no gnuplot): the caller
// warns and goes on.
void draw_loss_curve(const std::filesystem::path& metrics, const std::filesystem::path& picture,
                     const std::string& title = "Loss", bool byte_tokens = false);

}  // namespace farspan
