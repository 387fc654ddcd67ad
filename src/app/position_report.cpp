#include "app/position_report.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <vector>

#include "core/error.h"
#include "core/plot.h"

namespace farspan::app {
namespace {

// Pairs of runs that are looked at, over all samples.
constexpr std::int64_t kMostRunPairs = 100'000'000;

// What the samples show together. Pairs are counted by second differences: a few additions for two
// runs instead of one for each pair of their tokens.
class Tally {
 public:
  explicit Tally(std::int64_t end)
      : bends_(static_cast<std::size_t>(end) + 2),
        samples_(static_cast<std::size_t>(end)),
        last_(static_cast<std::size_t>(end)) {}

  void add(const std::vector<PositionRun>& runs) {
    ++sample_;
    for (std::size_t b = 0; b < runs.size(); ++b) {
      add_within(runs[b]);
      for (std::size_t a = 0; a < b; ++a) add_between(runs[a], runs[b]);
    }
  }

  // Number of pairs at each distance.
  std::vector<double> pairs() const {
    std::vector<double> out(bends_.size());
    std::int64_t slope = 0, value = 0;
    for (std::size_t d = 0; d < bends_.size(); ++d) {
      slope += bends_[d];
      value += slope;
      out[d] = static_cast<double>(value);
    }
    return out;
  }
  // Number of samples that show each distance.
  const std::vector<std::int64_t>& samples() const { return samples_; }

 private:
  // n - d pairs at distance d of 1 .. n - 1: falls by one each, from n - 1 at 1 to 0 at n.
  void add_within(const PositionRun& run) {
    const std::int64_t n = run.count;
    if (n < 2) return;
    bend(1, n - 1);
    bend(2, -n);
    bend(n + 1, 1);
    show(1, n);
  }
  // A trapezoid: rises over the shorter run's length, falls over it again.
  void add_between(const PositionRun& a, const PositionRun& b) {
    const std::int64_t low = b.first - a.first - a.count + 1;
    bend(low, 1);
    bend(low + a.count, -1);
    bend(low + b.count, -1);
    bend(low + a.count + b.count, 1);
    show(low, low + a.count + b.count - 1);
  }
  // A change of slope, felt from distance d on.
  void bend(std::int64_t d, std::int64_t change) {
    if (d < static_cast<std::int64_t>(bends_.size())) bends_[static_cast<std::size_t>(d)] += change;
  }
  // Distances [begin, end) occur in the sample at hand.
  void show(std::int64_t begin, std::int64_t end) {
    for (auto d = static_cast<std::size_t>(begin); d < static_cast<std::size_t>(end); ++d) {
      if (last_[d] == sample_) continue;
      last_[d] = sample_;
      ++samples_[d];
    }
  }

  std::vector<std::int64_t> bends_;
  std::vector<std::int64_t> samples_;
  std::vector<std::int64_t> last_;  // the last sample that showed a distance; samples count from 1
  std::int64_t sample_ = 0;
};

std::size_t bin_of(std::int64_t distance, std::int64_t end) {
  return static_cast<std::size_t>(distance * static_cast<std::int64_t>(kDistanceBins) / end);
}

void summarise(const Tally& tally, PositionReport& report) {
  const std::vector<double> pairs = tally.pairs();
  const std::vector<std::int64_t>& samples = tally.samples();
  std::array<std::int64_t, kDistanceBins> distances{};
  std::int64_t seen = 0;
  for (std::int64_t d = 1; d < report.end; ++d) {
    const std::size_t bin = bin_of(d, report.end), at = static_cast<std::size_t>(d);
    report.histogram[bin] += pairs[at];
    report.coverage[bin] += static_cast<double>(samples[at]) / static_cast<double>(report.counted);
    ++distances[bin];
    seen += samples[at] > 0 ? 1 : 0;
  }
  const double all = std::accumulate(report.histogram.begin(), report.histogram.end(), 0.0);
  for (std::size_t bin = 0; bin < kDistanceBins; ++bin) {
    if (all > 0) report.histogram[bin] /= all;
    if (distances[bin] > 0) report.coverage[bin] /= static_cast<double>(distances[bin]);
  }
  if (report.end > 1)
    report.share_of_distances = static_cast<double>(seen) / static_cast<double>(report.end - 1);
}

std::string name_of(PositionSampler sampler) {
  switch (sampler) {
    case PositionSampler::kPose:
      return "pose";
    case PositionSampler::kCream:
      return "cream";
    case PositionSampler::kRandomized:
      return "randomized";
    case PositionSampler::kSequential:
      break;
  }
  return "sequential";
}

std::string subtitle(const PositionReport& r) {
  std::string text =
      fmt::format("{}{}, documents of {} tokens",
                  r.question.stage < 0 ? "" : fmt::format("stage {}: ", r.question.stage),
                  name_of(r.options.sampler), r.question.tokens);
  if (r.options.sampler == PositionSampler::kPose)
    text += fmt::format(", {} chunks{}", r.options.chunks,
                        r.options.target_margin ? ", target margin" : "");
  return text;
}

// What tells apart the positions of two stages.
std::string positions_key(const RunConfig& config) {
  return fmt::format("{} {}", config.train().sequence_length(),
                     config.positions().SerializeAsString());
}

// "stages 0, 2, 4".
std::string stage_names(const std::vector<int>& stages) {
  constexpr std::size_t kMost = 8;
  const std::size_t named = std::min(kMost, stages.size());
  return fmt::format("stage{} {}{}", stages.size() > 1 ? "s" : "",
                     fmt::join(stages.begin(), stages.begin() + static_cast<long>(named), ", "),
                     stages.size() > named ? ", ..." : "");
}

}  // namespace

std::string stage_positions_note(const RunConfig& base, const std::vector<StagePlan>& stages) {
  std::map<std::string, std::size_t> known;
  std::vector<std::vector<int>> alike;
  for (const StagePlan& stage : stages) {
    const auto at = known.try_emplace(positions_key(stage.config), alike.size());
    if (at.second) alike.emplace_back();
    alike[at.first->second].push_back(stage.index);
  }
  if (known.size() == 1 && known.begin()->first == positions_key(base)) return {};
  std::string out = "stages of the curriculum show other distances; --stage N prints those of one";
  for (const std::vector<int>& group : alike) {
    const RunConfig& config = stages[static_cast<std::size_t>(group.front())].config;
    const bool jumps = config.positions().sampler() != "sequential";
    out +=
        fmt::format("\n  {}: {}, sequences of {} tokens{}", stage_names(group),
                    config.positions().sampler(), config.train().sequence_length(),
                    jumps ? fmt::format(", target {}", config.positions().target_context()) : "");
  }
  return out;
}

PositionReport measure_positions(const PositionOptions& options, const PositionQuestion& question) {
  PositionReport report{
      .question = question, .options = options, .end = options.end(question.tokens)};
  Tally tally(report.end);
  std::int64_t pairs_left = kMostRunPairs;
  double first_chunks = 0;
  for (std::int64_t i = 0; i < question.samples; ++i) {
    const std::vector<PositionRun> runs = draw_positions(
        options, {.seed = question.seed, .sample = static_cast<std::uint64_t>(i)}, question.tokens);
    if (runs.empty()) continue;
    first_chunks += static_cast<double>(runs.front().count);
    report.max_position = std::max(report.max_position, runs.back().first + runs.back().count - 1);
    const auto num_runs = static_cast<std::int64_t>(runs.size());
    pairs_left -= num_runs * (num_runs + 1) / 2;
    if (pairs_left < 0 && report.counted > 0) continue;
    tally.add(runs);
    ++report.counted;
  }
  if (question.samples > 0)
    report.first_chunk_mean = first_chunks / static_cast<double>(question.samples);
  if (report.counted > 0) summarise(tally, report);
  return report;
}

nlohmann::ordered_json position_json(const PositionReport& r) {
  const bool draws = r.options.sampler != PositionSampler::kSequential;
  nlohmann::ordered_json out = {{"sampler", name_of(r.options.sampler)}};
  if (r.question.stage >= 0) out["stage"] = r.question.stage;
  out.update({{"samples", r.question.samples},
              {"tokens", r.question.tokens},
              {"target_context", draws ? r.options.target_context : r.end},
              {"histogram_end", r.end},
              {"histogram", r.histogram},
              {"coverage", r.coverage},
              {"counted_samples", r.counted},
              {"max_position", r.max_position},
              {"first_chunk_mean", r.first_chunk_mean},
              {"share_of_distances_covered", r.share_of_distances}});
  return out;
}

std::string position_text(const PositionReport& r) {
  constexpr std::size_t kLines = 16, kWidth = 40;
  std::string out = fmt::format(
      "{}: {} samples\n  largest position {}, first chunk {:.1f} tokens on average\n"
      "  {:.1f}% of the distances 1 .. {} occur in some sample{}\n\n"
      "      distances        share of samples that show one of them\n",
      subtitle(r), r.question.samples, r.max_position, r.first_chunk_mean,
      100 * r.share_of_distances, r.end - 1,
      r.counted < r.question.samples ? fmt::format(" ({} samples counted)", r.counted) : "");
  const std::size_t bins = kDistanceBins / kLines;
  for (std::size_t line = 0; line < kLines; ++line) {
    double share = 0;
    for (std::size_t b = line * bins; b < (line + 1) * bins; ++b)
      share += r.coverage[b] / static_cast<double>(bins);
    const auto begin = static_cast<std::int64_t>(line) * r.end / static_cast<std::int64_t>(kLines);
    const auto end =
        static_cast<std::int64_t>(line + 1) * r.end / static_cast<std::int64_t>(kLines);
    out += fmt::format("  {:>8} - {:<8} {:6.2f}% {}\n", std::max<std::int64_t>(begin, 1), end - 1,
                       100 * share,
                       std::string(static_cast<std::size_t>(std::lround(share * kWidth)), '#'));
  }
  return out;
}

void draw_position_plot(const PositionReport& r, const std::filesystem::path& path) {
  LinePlot plot{.title = "Distances between tokens of one document",
                .x_label = "distance (positions)",
                .y_label = "share of samples that show it (%)",
                .subtitle = subtitle(r)};
  plot.y_min = 0;
  Series series{.name = ""};
  for (std::size_t b = 0; b < kDistanceBins; ++b) {
    series.x.push_back((static_cast<double>(b) + 0.5) * static_cast<double>(r.end) / kDistanceBins);
    series.y.push_back(100 * r.coverage[b]);
  }
  plot.series.push_back(std::move(series));
  render(plot, path);
}

}  // namespace farspan::app
