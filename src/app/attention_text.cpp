// attention_text(): the report for people, with the map of area by rank and hop.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "app/attention_report.h"

namespace farspan::app {
namespace {

constexpr int kMostRows = 32;
constexpr int kMostColumns = 64;
constexpr int kBarWidth = 12;
constexpr int kMostHopLines = 12;

// From nothing to the largest value.
const std::vector<std::string>& shades(bool unicode) {
  static const std::vector<std::string> kBlocks = {" ", "░", "▒", "▓", "█"};
  static const std::vector<std::string> kAscii = {" ", ".", ":", "-", "=", "+", "*", "#", "%", "@"};
  return unicode ? kBlocks : kAscii;
}

std::string shade(double share, bool unicode) {
  const auto& all = shades(unicode);
  if (share <= 0) return all.front();  // anything above 0 is seen
  const auto steps = static_cast<double>(all.size() - 1);
  return all[static_cast<std::size_t>(std::clamp(std::ceil(share * steps), 1.0, steps))];
}

// A bar of `share` of kBarWidth characters.
std::string bar(double share, bool unicode) {
  static const char* const kEighths[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
  const double length = std::clamp(share, 0.0, 1.0) * kBarWidth;
  auto full = static_cast<int>(unicode ? std::floor(length) : std::round(length));
  const int eighths = unicode ? static_cast<int>((length - full) * 8) : 0;
  std::string out;
  for (int i = 0; i < full; ++i) out += unicode ? "█" : "#";
  out += kEighths[eighths];
  if (eighths > 0) ++full;
  return out + std::string(static_cast<std::size_t>(std::max(0, kBarWidth - full)), ' ');
}

std::string span_name(int first, int end) {
  return end - first <= 1 ? std::to_string(first) : fmt::format("{}-{}", first, end - 1);
}

double mean_over(const std::vector<double>& values, int first, int end) {
  return std::accumulate(values.begin() + first, values.begin() + end, 0.0) / (end - first);
}

// One line per rank (or group of ranks): the map, then area and tokens over their means.
std::string area_map(const AttentionAnswer& a, bool unicode) {
  const AttentionSummary& s = a.summary;
  const AreaGrid grid = area_grid(s, kMostRows, kMostColumns);
  const std::size_t columns = grid.first_hop.size() - 1;
  const int cell = columns <= kMostColumns / 2 ? 2 : 1;
  const int hops = static_cast<int>(s.hops.size());
  const bool ranks_fold = s.ranks > kMostRows, hops_fold = hops > kMostColumns;
  std::string out = fmt::format("Area by hop: a line is {}, a column {}. The darkest: {} pairs.\n",
                                ranks_fold ? "the mean of some ranks" : "a rank",
                                hops_fold ? "some hops" : "a hop", short_number(grid.largest));
  const int map_width = std::max(static_cast<int>(columns) * cell, 6);
  const std::string last = hops > 1 ? std::to_string(hops - 1) : "";
  out += fmt::format("{:>9}  0{:>{}}   {:<{}}{}\n", "rank  hop", last, map_width - 1, "area / mean",
                     kBarWidth + 7, "tokens / mean");
  const std::vector<double> tokens(s.tokens.begin(), s.tokens.end());
  const double mean_tokens = static_cast<double>(s.num_tokens) / s.ranks;
  const double area_mean = mean_area(s);
  const double longest = std::max({s.area_max_over_mean, s.tokens_max_over_mean, 1.0});
  const char* edge = unicode ? "│" : "|";
  for (std::size_t r = 0; r < grid.values.size(); ++r) {
    std::string map;
    for (const double value : grid.values[r])
      for (int i = 0; i < cell; ++i)
        map += shade(grid.largest > 0 ? value / grid.largest : 0, unicode);
    map += std::string(
        static_cast<std::size_t>(map_width) - columns * static_cast<std::size_t>(cell), ' ');
    const int first = grid.first_rank[r], end = grid.first_rank[r + 1];
    const double area = area_mean > 0 ? mean_over(s.area, first, end) / area_mean : 0;
    const double held = mean_tokens > 0 ? mean_over(tokens, first, end) / mean_tokens : 0;
    out +=
        fmt::format("{:>9} {}{}{} {} {:.2f}  {} {:.2f}\n", span_name(first, end), edge, map, edge,
                    bar(area / longest, unicode), area, bar(held / longest, unicode), held);
  }
  return out;
}

std::string totals_table(const AttentionSummary& s) {
  const double mean_tokens = static_cast<double>(s.num_tokens) / s.ranks;
  const double area_mean = mean_area(s);
  std::string out =
      fmt::format("{:<16}{:>14}{:>14}{:>12}\n", "per rank", "max", "mean", "max/mean");
  out += fmt::format("{:<16}{:>14}{:>14}{:>12.3f}\n", "tokens",
                     grouped_digits(*std::max_element(s.tokens.begin(), s.tokens.end())),
                     grouped_digits(std::llround(mean_tokens)), s.tokens_max_over_mean);
  out += fmt::format("{:<16}{:>14}{:>14}{:>12.3f}\n", "area (pairs)",
                     short_number(*std::max_element(s.area.begin(), s.area.end())),
                     short_number(area_mean), s.area_max_over_mean);
  return out;
}

std::string bytes_lines(const AttentionAnswer& a) {
  const AttentionSummary& s = a.summary;
  if (s.ranks == 1) return "bytes of a layer: none, one rank holds all rows\n";
  std::string out = "bytes of a layer, all ranks\n";
  const auto line = [&](const char* name, const std::string& value, const std::string& rest) {
    out += fmt::format("  {:<14}{:>10}  {}\n", name, value, rest);
  };
  line("forward", bytes_text(s.bytes_forward),
       s.ulysses > 1 ? fmt::format("{} of it all-to-all: queries, keys, values and outputs",
                                   bytes_text(bytes_all_to_all(s)))
                     : "");
  line("backward", bytes_text(s.bytes_backward), "with the gradients of keys and values");
  line("full ring", bytes_text(s.bytes_ring_total),
       fmt::format("forward is {} of it: every key visits every rank",
                   percent_text(s.bytes_forward, s.bytes_ring_total)));
  line("unique", bytes_text(s.bytes_unique),
       fmt::format("forward is {}: each rank gets once what it needs and does not hold",
                   ratio_text(s.bytes_forward, s.bytes_unique)));
  const std::string bound = bound_text(a);
  if (s.bytes_bound > 0)
    line("lower bound", bound,
         fmt::format("forward is {}: {}", ratio_text(s.bytes_forward, s.bytes_bound),
                     bound_meaning()));
  else
    line("lower bound", bound,
         bound == "unknown" ? "which rows must travel is not counted for sparse patterns"
                            : "no row has to leave its rank for the work to be even");
  return out;
}

std::string hops_table(const AttentionAnswer& a) {
  const AttentionSummary& s = a.summary;
  if (s.hops.size() < 2) return "";
  std::string out = fmt::format("{:<9}{:>9}{:>12}{:>12}{:>12}{:>14}{:>15}\n", "hop", "slices",
                                "area max", "area mean", "bytes", "exposed fwd", "exposed bwd");
  const int hops = static_cast<int>(s.hops.size());
  const AreaGrid groups = area_grid(s, 1, kMostHopLines);
  const auto sum = [](const std::vector<double>& values, int first, int end) {
    double total = 0;
    for (int h = first; h < std::min(end, static_cast<int>(values.size())); ++h)
      total += values[static_cast<std::size_t>(h)];
    return total;
  };
  for (std::size_t g = 0; g + 1 < groups.first_hop.size(); ++g) {
    const int first = groups.first_hop[g], end = std::min(groups.first_hop[g + 1], hops);
    HopCost total;
    for (int h = first; h < end; ++h) {
      const HopCost& hop = s.hops[static_cast<std::size_t>(h)];
      total.slices += hop.slices;
      total.area_max += hop.area_max;
      total.area_mean += hop.area_mean;
      total.bytes += hop.bytes;
    }
    out += fmt::format("{:<9}{:>9}{:>12}{:>12}{:>12}{:>14}{:>15}\n", span_name(first, end),
                       grouped_digits(std::llround(total.slices)), short_number(total.area_max),
                       short_number(total.area_mean), bytes_text(total.bytes),
                       seconds_text(sum(a.time.exposed_forward_by_hop, first, end)),
                       seconds_text(sum(a.time.exposed_backward_by_hop, first, end)));
  }
  return out;
}

std::string time_lines(const AttentionAnswer& a) {
  const PredictedTime& t = a.time;
  std::string out = fmt::format("predicted for {}, a layer\n", a.speeds.name);
  out += fmt::format("  forward  {:>9}, of which exposed communication {} ({})\n",
                     seconds_text(t.forward), seconds_text(t.exposed_forward),
                     percent_text(t.exposed_forward, t.forward));
  out += fmt::format("  backward {:>9}, of which exposed communication {} ({})\n",
                     seconds_text(t.backward), seconds_text(t.exposed_backward),
                     percent_text(t.exposed_backward, t.backward));
  out += fmt::format(
      "  together {:>9} with projections and MLP; {} dealt out evenly without communication ({})\n",
      seconds_text(t.total), seconds_text(t.ideal), ratio_text(t.total, t.ideal));
  return out;
}

std::string choice_lines(const AttentionAnswer& a) {
  if (!a.choice) return "";
  std::string out = fmt::format("chosen: {}\n  {:<32}{:>8}{:>8}{:>10}{:>12}\n", a.choice->why, "",
                                "area", "tokens", "bytes", "a layer");
  for (const ParallelCandidate& c : a.choice->candidates)
    out += fmt::format("  {:<32}{:>8.2f}{:>8.2f}{:>10}{:>12}\n", c.name(), c.area_max_over_mean,
                       c.tokens_max_over_mean,
                       percent_text(c.bytes_forward, a.summary.bytes_ring_total),
                       seconds_text(c.seconds));
  return out;
}

}  // namespace

std::string attention_text(const AttentionAnswer& a, const TextOptions& options) {
  const AttentionSummary& s = a.summary;
  std::string out =
      fmt::format("{}\n{}; {}; {}/{} heads of {}, {}\n", documents_text(a.problem),
                  strategy_text(s), patterns_text(s), s.heads.num_heads, s.heads.num_kv_heads,
                  s.heads.head_dim, s.heads.compute == DType::kF32 ? "fp32" : "bf16");
  const auto section = [&](const std::string& text) {
    if (!text.empty()) out += "\n" + text;
  };
  section(choice_lines(a));
  section(area_map(a, options.unicode));
  section(totals_table(s));
  section(bytes_lines(a));
  section(hops_table(a));
  section(time_lines(a));
  std::string assumed;
  for (const std::string& one : a.assumed) assumed += (assumed.empty() ? "" : "; ") + one;
  if (!assumed.empty()) section("assumed: " + assumed + "\n");
  return out;
}

}  // namespace farspan::app
