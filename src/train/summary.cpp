#include "train/summary.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numbers>
#include <vector>

#include "core/error.h"
#include "core/plot.h"
#include "train/durable_file.h"

namespace farspan {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr std::size_t kLastSteps = 10;    // of loss_last_mean
constexpr std::size_t kMaxPoints = 2000;  // of the raw curve: more cannot be told apart
constexpr std::size_t kSmoothFrom = 20;   // steps from which a smoothed curve helps
constexpr std::size_t kMinReach = 3;      // steps on either side that are smoothed over:
constexpr std::size_t kReachShare = 16;   // this part of the run, at least kMinReach

double median(std::vector<double> values) {
  std::erase_if(values, [](double v) { return !std::isfinite(v); });
  if (values.empty()) return kUnknown;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

std::vector<TrainRow> scored_rows(std::vector<TrainRow> rows) {
  std::erase_if(rows, [](const TrainRow& row) { return !std::isfinite(row.loss); });
  return rows;
}

Json text_or_null(const std::string& text) { return text.empty() ? Json(nullptr) : Json(text); }

double bits(double nats, bool known) { return known ? nats / std::numbers::ln2 : kUnknown; }

// At each point the least-squares line through the `reach` values on either side: unlike an average
// of past values it does not trail behind a falling curve, nor bend at its ends.
std::vector<double> smooth(const std::vector<double>& values, std::size_t reach) {
  const std::size_t n = values.size();
  std::vector<double> sum_y(n + 1, 0.0), sum_xy(n + 1, 0.0);  // of the values before i
  for (std::size_t i = 0; i < n; ++i) {
    sum_y[i + 1] = sum_y[i] + values[i];
    sum_xy[i + 1] = sum_xy[i] + static_cast<double>(i) * values[i];
  }
  std::vector<double> out(n);
  for (std::size_t i = 0; i < n; ++i) {
    const std::size_t begin = i < reach ? 0 : i - reach;
    const std::size_t end = std::min(n, i + reach + 1);
    const auto count = static_cast<double>(end - begin);
    const double mean_x = (static_cast<double>(begin) + static_cast<double>(end) - 1) / 2;
    const double y = sum_y[end] - sum_y[begin];
    const double covariance = sum_xy[end] - sum_xy[begin] - mean_x * y;
    const double variance = count * (count * count - 1) / 12;  // of `count` consecutive integers
    const double slope = variance > 0 ? covariance / variance : 0.0;
    out[i] = y / count + slope * (static_cast<double>(i) - mean_x);
  }
  return out;
}

// Token counts in a unit that keeps the axis readable.
struct TokenUnit {
  double tokens;
  const char* label;
};

TokenUnit unit_for(double most_tokens) {
  if (most_tokens >= 2e9) return {1e9, "tokens trained on (billions)"};
  if (most_tokens >= 2e6) return {1e6, "tokens trained on (millions)"};
  if (most_tokens >= 2e3) return {1e3, "tokens trained on (thousands)"};
  return {1, "tokens trained on"};
}

// Tokens that had been trained on after `step` steps.
double tokens_at(const std::vector<TrainRow>& rows, std::int64_t step) {
  const auto after =
      std::upper_bound(rows.begin(), rows.end(), step,
                       [](std::int64_t s, const TrainRow& row) { return s < row.step; });
  return after == rows.begin() ? 0.0 : static_cast<double>(std::prev(after)->tokens);
}

// Rows of one stage follow one another: where each begins, and the end.
std::vector<std::size_t> stage_begins(const std::vector<TrainRow>& rows) {
  std::vector<std::size_t> out;
  for (std::size_t i = 0; i < rows.size(); ++i)
    if (i == 0 || rows[i].stage != rows[i - 1].stage) out.push_back(i);
  out.push_back(rows.size());
  return out;
}

std::vector<StageSummary> stages_of(const std::vector<TrainRow>& rows) {
  const std::vector<std::size_t> begins = stage_begins(rows);
  std::vector<StageSummary> out;
  for (std::size_t s = 0; s + 1 < begins.size(); ++s) {
    const TrainRow& last = rows[begins[s + 1] - 1];
    const TrainRow before = s == 0 ? TrainRow{} : rows[begins[s] - 1];
    std::vector<double> rates;
    for (std::size_t i = begins[s]; i < begins[s + 1]; ++i)
      rates.push_back(rows[i].tokens_per_second);
    out.push_back({.stage = last.stage,
                   .sequence_length = last.sequence_length,
                   .steps = last.step - before.step,
                   .tokens = last.tokens - before.tokens,
                   .loss_last = last.loss,
                   .tokens_per_second = median(std::move(rates))});
  }
  return out;
}

// The last row of each name that has a length, in the order of the first ones.
std::vector<EvalRow> last_by_length(const std::vector<EvalRow>& rows) {
  std::vector<EvalRow> out;
  for (const EvalRow& row : rows) {
    if (row.name.find('@') == std::string::npos) continue;
    const auto same = [&](const EvalRow& other) { return other.name == row.name; };
    const auto known = std::find_if(out.begin(), out.end(), same);
    if (known == out.end())
      out.push_back(row);
    else
      *known = row;
  }
  return out;
}

MeasuredIn measured_in(double sequence_length, const MetricExtras& extras) {
  MeasuredIn out{.sequence_length = static_cast<std::int64_t>(sequence_length)};
  for (const auto& [key, value] : extras) {
    if (!std::isfinite(value)) continue;
    if (key == "sequence_length") out.sequence_length = static_cast<std::int64_t>(value);
    if (key == "window") out.window = static_cast<std::int64_t>(value);
  }
  return out;
}

MeasuredIn measured_in(const TrainRow& row) {
  return measured_in(static_cast<double>(row.sequence_length), row.extras);
}

Json measured_json(const MeasuredIn& in) {
  if (in.sequence_length == 0) return nullptr;
  Json out = {{"sequence_length", in.sequence_length}};
  if (in.window > 0) out["window"] = in.window;
  return out;
}

std::string text_of(const MeasuredIn& in) {
  if (in.window == 0) return fmt::format("sequences of {}", in.sequence_length);
  return fmt::format("sequences of {}, window {}", in.sequence_length, in.window);
}

Json evaluation_json(const EvalRow& row) {
  Json out = {{"name", row.name}, {"step", row.step}, {"value", row.value}};
  for (const auto& [key, value] : row.extras) out[key] = value;
  return out;
}

// "64, 128 and 256", or, of many, "64 to 8192".
std::string lengths_text(const std::vector<StageSummary>& stages) {
  constexpr std::size_t kMostNamed = 6;
  const auto shorter = [](const StageSummary& a, const StageSummary& b) {
    return a.sequence_length < b.sequence_length;
  };
  if (stages.size() > kMostNamed) {
    const auto [low, high] = std::minmax_element(stages.begin(), stages.end(), shorter);
    return fmt::format("{} to {}", low->sequence_length, high->sequence_length);
  }
  std::string out;
  for (std::size_t i = 0; i < stages.size(); ++i)
    out += fmt::format("{}{}",
                       i == 0                   ? ""
                       : i + 1 == stages.size() ? " and "
                                                : ", ",
                       stages[i].sequence_length);
  return out;
}

// A vertical line where each stage but the first begins; one entry in the legend for all.
std::vector<Series> switch_lines(const std::vector<TrainRow>& rows, double unit) {
  const std::vector<std::size_t> begins = stage_begins(rows);
  const auto lower = [](const TrainRow& a, const TrainRow& b) { return a.loss < b.loss; };
  const auto [low, high] = std::minmax_element(rows.begin(), rows.end(), lower);
  std::vector<Series> out;
  for (std::size_t s = 1; s + 1 < begins.size(); ++s) {
    const double x = static_cast<double>(rows[begins[s] - 1].tokens) / unit;
    out.push_back({.name = s > 1 ? ""
                                 : fmt::format("stages: sequences of {} tokens",
                                               lengths_text(stages_of(rows))),
                   .x = {x, x},
                   .y = {low->loss, high->loss},
                   .style = SeriesStyle::kDashedLine,
                   .color = 6});
  }
  return out;
}

Series thinned(const Series& series) {
  const std::size_t stride = (series.x.size() + kMaxPoints - 1) / kMaxPoints;
  if (stride <= 1) return series;
  Series out{.name = series.name, .x = {}, .y = {}, .style = series.style, .color = series.color};
  for (std::size_t i = 0; i < series.x.size(); i += stride) {
    out.x.push_back(series.x[i]);
    out.y.push_back(series.y[i]);
  }
  return out;
}

}  // namespace

void add_losses(RunSummary& summary, const MetricsContent& metrics) {
  const std::vector<TrainRow> rows = scored_rows(metrics.train);
  if (!rows.empty()) {
    summary.loss_first = rows.front().loss;
    summary.loss_last = rows.back().loss;
    summary.loss_first_in = measured_in(rows.front());
    summary.loss_last_in = measured_in(rows.back());
    std::size_t n = 0;
    double sum = 0;
    for (auto row = rows.rbegin(); row != rows.rend() && n < kLastSteps &&
                                   row->sequence_length == rows.back().sequence_length;
         ++row, ++n)
      sum += row->loss;
    summary.loss_last_mean = sum / static_cast<double>(n);
  }
  std::vector<double> rates, mfus;
  for (const TrainRow& row : metrics.train) {
    rates.push_back(row.tokens_per_second);
    mfus.push_back(row.mfu);
  }
  summary.tokens_per_second = median(std::move(rates));
  summary.mfu = median(std::move(mfus));
  summary.stages = stages_of(metrics.train);
  summary.evaluations = last_by_length(metrics.eval);
  bool first = true;
  for (const EvalRow& row : metrics.eval) {
    if (row.name != "loss") continue;
    summary.eval_loss_last = row.value;
    summary.eval_loss_last_in = measured_in(0, row.extras);
    if (first) {
      summary.eval_loss_first = row.value;
      summary.eval_loss_first_in = summary.eval_loss_last_in;
    }
    first = false;
  }
}

std::string to_json(const RunSummary& s) {
  const bool bytes = s.byte_tokens;
  Json stages = Json::array();
  for (const StageSummary& stage : s.stages)
    stages.push_back({{"stage", stage.stage},
                      {"sequence_length", stage.sequence_length},
                      {"steps", stage.steps},
                      {"tokens", stage.tokens},
                      {"loss_last", stage.loss_last},
                      {"tokens_per_second", stage.tokens_per_second}});
  Json evaluations = Json::array();
  for (const EvalRow& row : s.evaluations) evaluations.push_back(evaluation_json(row));
  const Json json = {{"name", s.name},
                     {"status", s.status == RunStatus::kFinished ? "finished" : "stopped"},
                     {"steps", s.steps},
                     {"tokens", s.tokens},
                     {"skipped_tokens", s.skipped_tokens},
                     {"loss_first", s.loss_first},
                     {"loss_last", s.loss_last},
                     {"loss_last_mean", s.loss_last_mean},
                     {"loss_first_in", measured_json(s.loss_first_in)},
                     {"loss_last_in", measured_json(s.loss_last_in)},
                     {"bits_per_byte_first", bits(s.loss_first, bytes)},
                     {"bits_per_byte_last", bits(s.loss_last, bytes)},
                     {"eval_loss_first", s.eval_loss_first},
                     {"eval_loss_last", s.eval_loss_last},
                     {"eval_loss_first_in", measured_json(s.eval_loss_first_in)},
                     {"eval_loss_last_in", measured_json(s.eval_loss_last_in)},
                     {"eval_bits_per_byte_first", bits(s.eval_loss_first, bytes)},
                     {"eval_bits_per_byte_last", bits(s.eval_loss_last, bytes)},
                     {"tokens_per_second", s.tokens_per_second},
                     {"mfu", s.mfu},
                     {"peak_tflops_per_rank", s.peak_flops_per_rank / 1e12},
                     {"peak_method", text_or_null(s.peak_method)},
                     {"seconds", s.seconds},
                     {"parameters", s.parameters},
                     {"ranks", s.ranks},
                     {"data", s.data},
                     {"context", s.context},
                     {"stages", stages},
                     {"evaluations", evaluations},
                     {"device", text_or_null(s.device)},
                     {"checkpoint", text_or_null(s.checkpoint)},
                     {"sample", text_or_null(s.sample)},
                     {"plot", text_or_null(s.plot)}};
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string losses_text(const RunSummary& s) {
  if (s.loss_first_in == s.loss_last_in)
    return fmt::format("loss {:.4f} -> {:.4f} nats per token", s.loss_first, s.loss_last);
  return fmt::format("loss {:.4f} ({}) -> {:.4f} ({}) nats per token", s.loss_first,
                     text_of(s.loss_first_in), s.loss_last, text_of(s.loss_last_in));
}

std::string evaluations_text(const RunSummary& s) {
  std::int64_t newest = -1;
  for (const EvalRow& row : s.evaluations) newest = std::max(newest, row.step);
  std::string out;
  for (const EvalRow& row : s.evaluations)
    if (row.step == newest)
      out += fmt::format("{}{} {:.4g}", out.empty() ? "" : ", ", row.name, row.value);
  return out.empty() ? out : fmt::format("{} after step {}", out, newest);
}

void write_summary(const fs::path& path, const RunSummary& summary) {
  replace_file(path, to_json(summary));
}

bool summary_is_of_finished(const fs::path& path, std::int64_t step) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return false;
  const Json json = Json::parse(in, nullptr, /*allow_exceptions=*/false);
  return json.is_object() && json.value("/status"_json_pointer, Json()) == "finished" &&
         json.value("/steps"_json_pointer, Json()) == step;
}

void draw_loss_curve(const fs::path& metrics, const fs::path& picture, const std::string& title,
                     bool byte_tokens) {
  const MetricsContent content = read_metrics(metrics);
  const std::vector<TrainRow> rows = scored_rows(content.train);
  if (rows.empty())
    throw Error(ExitCode::kBadData, {.what = "no step with a finite loss to draw",
                                     .where = metrics.string(),
                                     .fix = "let the run do at least one step"});
  const TokenUnit unit = unit_for(static_cast<double>(rows.back().tokens));
  Series raw{.name = "training, each step",
             .x = {},
             .y = {},
             .style = SeriesStyle::kFaintLine,
             .color = 0};
  for (const TrainRow& row : rows) {
    raw.x.push_back(static_cast<double>(row.tokens) / unit.tokens);
    raw.y.push_back(row.loss);
  }
  LinePlot plot{.title = title, .x_label = unit.label, .y_label = "loss (nats per token)"};
  if (byte_tokens) {
    plot.right_label = "bits per byte";
    plot.right_factor = 1 / std::numbers::ln2;
  }
  if (rows.size() >= kSmoothFrom) {
    Series smoothed{
        .name = "training, smoothed", .x = raw.x, .y = {}, .style = SeriesStyle::kLine, .color = 0};
    smoothed.y = smooth(raw.y, std::max(kMinReach, rows.size() / kReachShare));
    plot.series = {thinned(raw), thinned(smoothed)};
  } else {
    raw.name = "training";
    raw.style = SeriesStyle::kLine;
    plot.series = {raw};
  }
  Series held_out{
      .name = "held out", .x = {}, .y = {}, .style = SeriesStyle::kLinePoints, .color = 1};
  for (const EvalRow& row : content.eval) {
    if (row.name != "loss" || !std::isfinite(row.value)) continue;
    held_out.x.push_back(tokens_at(rows, row.step) / unit.tokens);
    held_out.y.push_back(row.value);
  }
  if (!held_out.x.empty()) plot.series.push_back(std::move(held_out));
  for (Series& line : switch_lines(rows, unit.tokens)) plot.series.push_back(std::move(line));
  render(plot, picture);
}

}  // namespace farspan
