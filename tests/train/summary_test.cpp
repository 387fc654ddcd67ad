#include "train/summary.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "train/temporary_folder.h"

namespace farspan {
namespace {

using testing::count_files;
using testing::read_all;
using testing::TemporaryFolder;

MetricsContent run_of(int steps) {
  MetricsContent out;
  for (int step = 1; step <= steps; ++step)
    out.train.push_back({.step = step,
                         .tokens = step * 16384,
                         .loss = 2 + 3.0 / step,
                         .tokens_per_second = step == 1 ? 10.0 : 1000.0,
                         .mfu = step == 1 ? 0.01 : 0.3});
  out.eval.push_back({.step = 0, .name = "loss", .value = 5.5});
  out.eval.push_back({.step = steps / 2, .name = "passkey", .value = 0.5});
  out.eval.push_back({.step = steps, .name = "loss", .value = 2.5});
  return out;
}

void write_metrics(const std::filesystem::path& path, const MetricsContent& content) {
  MetricsFile file(path);
  for (const auto& row : content.train) file.write(row);
  for (const auto& row : content.eval) file.write(row);
}

TEST(Summary, LossesComeFromTheMetrics) {
  RunSummary s;
  add_losses(s, run_of(20));
  EXPECT_EQ(s.loss_first, 5.0);
  EXPECT_EQ(s.loss_last, 2 + 3.0 / 20);
  double mean = 0;
  for (int step = 11; step <= 20; ++step) mean += (2 + 3.0 / step) / 10;
  EXPECT_NEAR(s.loss_last_mean, mean, 1e-12);
  EXPECT_EQ(s.eval_loss_first, 5.5);
  EXPECT_EQ(s.eval_loss_last, 2.5);
  EXPECT_EQ(s.tokens_per_second, 1000.0) << "the median: the slow first step does not count";
  EXPECT_EQ(s.mfu, 0.3);
}

TEST(Summary, SaysWhatLossesWereMeasuredIn) {
  MetricsContent content = run_of(20);
  for (TrainRow& row : content.train) row.sequence_length = row.step <= 17 ? 64 : 256;
  content.eval.front().extras = {{"sequence_length", 64}};
  content.eval.back().extras = {{"sequence_length", 256}};
  RunSummary s;
  add_losses(s, content);
  EXPECT_NEAR(s.loss_last_mean, 2 + (3.0 / 18 + 3.0 / 19 + 3.0 / 20) / 3, 1e-12)
      << "of the last length only";
  EXPECT_EQ(losses_text(s),
            "loss 5.0000 (sequences of 64) -> 2.1500 (sequences of 256) nats per token");
  auto json = nlohmann::json::parse(to_json(s));
  EXPECT_EQ(json.at("loss_first_in"), nlohmann::json({{"sequence_length", 64}}));
  EXPECT_EQ(json.at("eval_loss_first_in").at("sequence_length"), 64);
  EXPECT_EQ(json.at("eval_loss_last_in").at("sequence_length"), 256);

  for (TrainRow& row : content.train) row.sequence_length = 256;
  content.train.front().extras = {{"window", 32}};
  add_losses(s, content);
  EXPECT_EQ(
      losses_text(s),
      "loss 5.0000 (sequences of 256, window 32) -> 2.1500 (sequences of 256) nats per token");
  content.train.front().extras.clear();
  add_losses(s, content);
  EXPECT_EQ(losses_text(s), "loss 5.0000 -> 2.1500 nats per token");
}

TEST(Summary, KeepsTheLastEvaluationAtEachLength) {
  MetricsContent content = run_of(20);
  for (const std::int64_t step : {10, 20})
    for (const char* name : {"passkey@64", "passkey@256", "perplexity@64", "gate/loss"})
      content.eval.push_back({.step = step,
                              .name = name,
                              .value = static_cast<double>(step) / 40,
                              .extras = {{"documents", 12}}});
  content.eval.push_back({.step = 10, .name = "passkey@512", .value = 1});  // no longer asked for
  RunSummary s;
  add_losses(s, content);
  EXPECT_EQ(evaluations_text(s),
            "passkey@64 0.5, passkey@256 0.5, perplexity@64 0.5 after step 20");
  const auto json = nlohmann::json::parse(to_json(s)).at("evaluations");
  ASSERT_EQ(json.size(), 4u);
  EXPECT_EQ(json.at(1).at("name"), "passkey@256");
  EXPECT_EQ(json.at(1).at("step"), 20);
  EXPECT_EQ(json.at(1).at("value"), 0.5);
  EXPECT_EQ(json.at(1).at("documents"), 12);
  EXPECT_EQ(json.at(3).at("step"), 10);
  RunSummary none;
  add_losses(none, run_of(20));
  EXPECT_EQ(evaluations_text(none), "");
}

TEST(Summary, IsOfTheRunThatFinishedAtAStep) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "summary.json";
  EXPECT_FALSE(summary_is_of_finished(path, 4)) << "there is none";
  write_summary(path, {.status = RunStatus::kFinished, .steps = 4});
  EXPECT_TRUE(summary_is_of_finished(path, 4));
  EXPECT_FALSE(summary_is_of_finished(path, 6));
  write_summary(path, {.status = RunStatus::kStopped, .steps = 4});
  EXPECT_FALSE(summary_is_of_finished(path, 4));
  for (const char* damaged : {"", "{", "[]", "{\"steps\": 4}"}) {
    replace_file(path, damaged);
    EXPECT_FALSE(summary_is_of_finished(path, 4)) << damaged;
  }
}

TEST(Summary, FewStepsAndSkippedSteps) {
  RunSummary s;
  MetricsContent content = run_of(3);
  content.train.push_back({.step = 4, .loss = std::nan("")});
  add_losses(s, content);
  EXPECT_EQ(s.loss_last, 3.0);
  EXPECT_NEAR(s.loss_last_mean, (5 + 3.5 + 3) / 3, 1e-12);
  RunSummary empty;
  add_losses(empty, {});
  EXPECT_TRUE(std::isnan(empty.loss_first));
  EXPECT_TRUE(std::isnan(empty.tokens_per_second));
}

TEST(Summary, JsonHasEveryKey) {
  const TemporaryFolder folder;
  RunSummary s{
      .name = "quickstart",
      .status = RunStatus::kStopped,
      .steps = 100,
      .tokens = 1638400,
      .loss_first = std::log(2.0) * 8,
      .loss_last = std::log(2.0) * 2,
      .byte_tokens = true,
      .peak_flops_per_rank = 9.5e11,
      .peak_method = "measured: bf16 matmul 1024x1024x1024",
      .parameters = 700000,
      .ranks = 2,
      .context = 2,
      .stages = {{.stage = 0, .sequence_length = 256}, {.stage = 1, .sequence_length = 512}},
      .sample = "caf\xc3\xa9 \xff end"};
  write_summary(folder / "summary.json", s);
  EXPECT_EQ(count_files(folder.path()), 1);
  const auto json = nlohmann::json::parse(read_all(folder / "summary.json"));
  EXPECT_EQ(json.at("name"), "quickstart");
  EXPECT_EQ(json.at("status"), "stopped");
  EXPECT_EQ(json.at("steps"), 100);
  EXPECT_EQ(json.at("tokens"), 1638400);
  EXPECT_DOUBLE_EQ(json.at("bits_per_byte_first"), 8.0);
  EXPECT_DOUBLE_EQ(json.at("bits_per_byte_last"), 2.0);
  EXPECT_TRUE(json.at("eval_loss_last").is_null());
  EXPECT_TRUE(json.at("eval_bits_per_byte_last").is_null());
  EXPECT_DOUBLE_EQ(json.at("peak_tflops_per_rank"), 0.95);
  EXPECT_EQ(json.at("context"), 2);
  EXPECT_EQ(json.at("sample"), "caf\xc3\xa9 \xef\xbf\xbd end");
  EXPECT_TRUE(json.at("plot").is_null()) << "no plot was made";
  EXPECT_EQ(json.size(), 33u);
  EXPECT_EQ(json.at("stages").at(1).at("sequence_length"), 512);

  s.status = RunStatus::kFinished;
  s.byte_tokens = false;
  write_summary(folder / "summary.json", s);
  const auto again = nlohmann::json::parse(read_all(folder / "summary.json"));
  EXPECT_EQ(again.at("status"), "finished");
  EXPECT_TRUE(again.at("bits_per_byte_first").is_null()) << "tokens are not bytes";
}

TEST(Summary, CurveIsDrawn) {
  const TemporaryFolder folder;
  for (int steps : {3, 200}) {
    const auto metrics = folder.path() / fmt::format("metrics{}.jsonl", steps);
    write_metrics(metrics, run_of(steps));
    const auto picture = folder.path() / fmt::format("loss{}.svg", steps);
    draw_loss_curve(metrics, picture, "Loss of a test", true);
    const std::string svg = read_all(picture);
    for (const char* text : {"Loss of a test", "held out", "loss (nats per token)", "bits per byte",
                             "tokens trained on"})
      EXPECT_NE(svg.find(text), std::string::npos) << steps << ": " << text;
    EXPECT_EQ(svg.find("smoothed") != std::string::npos, steps == 200);
  }
}

TEST(Summary, NothingToDraw) {
  const TemporaryFolder folder;
  write_metrics(folder / "metrics.jsonl", {});
  try {
    draw_loss_curve(folder / "metrics.jsonl", folder / "loss.svg");
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kBadData);
  }
}

}  // namespace
}  // namespace farspan
