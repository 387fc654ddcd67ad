#include "app/attention_report.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "parallel/balance.h"

namespace farspan::app {
namespace {

using Json = nlohmann::ordered_json;

std::int64_t whole(double value) { return std::llround(value); }

std::int64_t median_of(std::vector<std::int64_t> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

Json patterns_json(const AttentionAnswer& a) {
  Json out = Json::array();
  for (const PatternCost& p : a.summary.patterns)
    out.push_back({{"pattern", p.description}, {"share_of_layers", p.weight}});
  return out;
}

Json hops_json(const AttentionAnswer& a) {
  const auto exposed = [](const std::vector<double>& by_hop, std::size_t h) {
    return h < by_hop.size() ? by_hop[h] : 0.0;
  };
  Json out = Json::array();
  for (std::size_t h = 0; h < a.summary.hops.size(); ++h) {
    const HopCost& hop = a.summary.hops[h];
    out.push_back({{"hop", h},
                   {"slices", whole(hop.slices)},
                   {"area_max", hop.area_max},
                   {"area_mean", hop.area_mean},
                   {"bytes", whole(hop.bytes)},
                   {"exposed_forward_seconds", exposed(a.time.exposed_forward_by_hop, h)},
                   {"exposed_backward_seconds", exposed(a.time.exposed_backward_by_hop, h)}});
  }
  return out;
}

Json candidates_json(const ParallelChoice& choice) {
  Json out = Json::array();
  for (const ParallelCandidate& c : choice.candidates)
    out.push_back({{"layout", layout_name(c.layout)},
                   {"strategy", c.attention},
                   {"ulysses", c.ulysses},
                   {"tokens_max_over_mean", c.tokens_max_over_mean},
                   {"area_max_over_mean", c.area_max_over_mean},
                   {"bytes_total", whole(c.bytes_forward)},
                   {"seconds", c.seconds}});
  return out;
}

std::vector<int> borders(int count, int most) {
  const int groups = std::max(1, std::min(count, most));
  std::vector<int> out;
  for (int g = 0; g <= groups; ++g)
    out.push_back(static_cast<int>(static_cast<std::int64_t>(count) * g / groups));
  return out;
}

}  // namespace

AttentionAnswer answer(const AttentionQuestion& q) {
  AttentionAnswer a{.problem = q.problem,
                    .summary = {},
                    .speeds = q.speeds,
                    .time = {},
                    .choice = std::nullopt,
                    .assumed = q.assumed};
  if (q.choose_layout || q.choose_attention || q.choose_ulysses) {
    a.choice = choose_parallel({.problem = q.problem,
                                .free_layout = q.choose_layout,
                                .free_attention = q.choose_attention,
                                .free_ulysses = q.choose_ulysses,
                                .speeds = q.speeds});
    a.problem.layout = a.choice->layout;
    a.problem.attention = a.choice->attention;
    a.problem.ulysses = a.choice->ulysses;
  }
  a.summary = summarize(a.problem);
  a.time = predict(a.summary, a.speeds);
  return a;
}

nlohmann::ordered_json attention_json(const AttentionAnswer& a) {
  constexpr int kMostRanksInFull = 256;  // area_by_hop grows with their square
  const AttentionSummary& s = a.summary;
  const auto& documents = a.problem.documents;
  Json out;
  out["layout"] = layout_name(s.layout);
  out["strategy"] = s.attention;
  out["ranks"] = s.ranks;
  out["ring"] = s.ring;
  out["ulysses"] = s.ulysses;
  out["invariant"] = s.invariant;
  out["sequence_length"] = s.num_tokens / s.sequences;
  out["sequences"] = s.sequences;
  out["documents"] = s.num_documents;
  out["document_lengths"] = {{"min", *std::min_element(documents.begin(), documents.end())},
                             {"median", median_of(documents)},
                             {"max", *std::max_element(documents.begin(), documents.end())}};
  out["patterns"] = patterns_json(a);
  out["heads"] = {{"query", s.heads.num_heads},
                  {"key_value", s.heads.num_kv_heads},
                  {"dim", s.heads.head_dim},
                  {"dtype", s.heads.compute == DType::kF32 ? "fp32" : "bf16"}};
  out["tokens_max_over_mean"] = s.tokens_max_over_mean;
  out["area_max_over_mean"] = s.area_max_over_mean;
  out["bytes_total"] = whole(s.bytes_forward);
  out["bytes_all_to_all"] = whole(bytes_all_to_all(s));
  out["bytes_backward"] = whole(s.bytes_backward);
  out["bytes_ring_total"] = whole(s.bytes_ring_total);
  out["bytes_unique"] = whole(s.bytes_unique);
  out["bytes_bound"] = whole(s.bytes_bound);
  out["tokens"] = s.tokens;
  out["area"] = s.area;
  out["hops"] = hops_json(a);
  if (s.ranks <= kMostRanksInFull) out["area_by_hop"] = s.area_by_hop;
  out["predicted"] = {{"unit", "seconds per layer"},
                      {"forward", a.time.forward},
                      {"backward", a.time.backward},
                      {"exposed_forward", a.time.exposed_forward},
                      {"exposed_backward", a.time.exposed_backward},
                      {"total", a.time.total},
                      {"ideal", a.time.ideal}};
  out["speeds"] = {{"name", a.speeds.name},
                   {"flops_per_second", a.speeds.flops_per_second},
                   {"backward_flops_per_second", a.speeds.backward_flops()},
                   {"bytes_per_second", a.speeds.bytes_per_second},
                   {"inside_bytes_per_second", a.speeds.inside_bytes(a.summary.ulysses)},
                   {"seconds_per_message", a.speeds.seconds_per_message}};
  if (a.choice) {
    out["why"] = a.choice->why;
    out["candidates"] = candidates_json(*a.choice);
  }
  out["assumed"] = a.assumed;
  return out;
}

// ---- words and numbers
// ---------------------------------------------------------------------------

std::string grouped_digits(std::int64_t n) {
  const std::string digits = std::to_string(n);
  std::string out;
  for (std::size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0 && out.back() != '-') out += ',';
    out += digits[i];
  }
  return out;
}

std::string short_number(double value) {
  const char* const suffixes[] = {"", " k", " M", " G", " T", " P", " E"};
  std::size_t i = 0;
  for (; value >= 999.5 && i + 1 < std::size(suffixes); ++i) value /= 1000;
  return fmt::format("{:.3g}{}", value, suffixes[i]);
}

std::string bytes_text(double bytes) {
  if (bytes < 999.5) return fmt::format("{:.0f} B", bytes);
  return short_number(bytes) + "B";
}

std::string seconds_text(double seconds) {
  if (seconds == 0) return "0";
  if (seconds < 1e-3) return fmt::format("{:.3g} us", seconds * 1e6);
  if (seconds < 1) return fmt::format("{:.3g} ms", seconds * 1e3);
  return fmt::format("{:.3g} s", seconds);
}

std::string percent_text(double part, double total) {
  if (total <= 0) return "-";
  const double value = 100 * part / total;
  return value < 9.95 && value != 0 ? fmt::format("{:.2g}%", value) : fmt::format("{:.0f}%", value);
}

std::string ratio_text(double part, double total) {
  return total <= 0 ? "-" : fmt::format("{:.3g} x", part / total);
}

double bytes_all_to_all(const AttentionSummary& s) {
  if (s.ulysses == 1) return 0;
  return std::accumulate(s.hops.begin(), s.hops.end(), s.bytes_forward,
                         [](double left, const HopCost& hop) { return left - hop.bytes; });
}

std::string bound_text(const AttentionAnswer& a) {
  const auto& patterns = a.problem.patterns;
  const bool sparse = std::any_of(patterns.begin(), patterns.end(), [](const AttentionPattern& p) {
    return p.sparse != SparseKind::kNone;
  });
  return sparse && a.summary.ranks > 1 ? "unknown" : bytes_text(a.summary.bytes_bound);
}

std::string bound_meaning() {
  return fmt::format("the least of any ring with area within {} of the mean", kAreaCap);
}

std::string documents_text(const AttentionCase& c) {
  const auto [least, most] = std::minmax_element(c.documents.begin(), c.documents.end());
  const std::int64_t n = c.num_tokens();
  const std::string sequences =
      c.sequences == 1
          ? fmt::format("a sequence of {} token{}", grouped_digits(n), n == 1 ? "" : "s")
          : fmt::format("{} sequences of {} tokens", c.sequences, grouped_digits(n / c.sequences));
  const auto count = static_cast<std::int64_t>(c.documents.size());
  if (count == c.sequences)
    return fmt::format("{}, {} document", sequences, count == 1 ? "one" : "each one");
  return fmt::format("{}, {} documents of {} to {} tokens (median {})", sequences,
                     grouped_digits(count), grouped_digits(*least), grouped_digits(*most),
                     grouped_digits(median_of(c.documents)));
}

double mean_area(const AttentionSummary& s) {
  return std::accumulate(s.area.begin(), s.area.end(), 0.0) / static_cast<double>(s.area.size());
}

std::string strategy_text(const AttentionSummary& s) {
  std::string text = fmt::format("{} {} over {} rank{}", layout_name(s.layout), s.attention,
                                 s.ranks, s.ranks == 1 ? "" : "s");
  if (s.invariant) text += ", invariant";
  if (s.attention == "hybrid") text += fmt::format(" (ulysses {} x ring {})", s.ulysses, s.ring);
  return text;
}

std::string patterns_text(const AttentionSummary& s) {
  std::string text;
  for (const PatternCost& p : s.patterns) {
    text += fmt::format("{}{}", text.empty() ? "" : "; ", p.description);
    if (s.patterns.size() > 1) text += fmt::format(" ({:.0f}% of the layers)", 100 * p.weight);
  }
  return text;
}

AreaGrid area_grid(const AttentionSummary& s, int rows, int columns) {
  AreaGrid grid;
  grid.first_rank = borders(s.ranks, rows);
  grid.first_hop = borders(static_cast<int>(s.hops.size()), columns);
  const std::size_t width = grid.first_hop.size() - 1;
  for (std::size_t r = 0; r + 1 < grid.first_rank.size(); ++r) {
    std::vector<double> line(width);
    const int ranks = grid.first_rank[r + 1] - grid.first_rank[r];
    for (int rank = grid.first_rank[r]; rank < grid.first_rank[r + 1]; ++rank)
      for (std::size_t c = 0; c < width; ++c)
        for (int h = grid.first_hop[c]; h < grid.first_hop[c + 1]; ++h)
          line[c] +=
              s.area_by_hop[static_cast<std::size_t>(rank)][static_cast<std::size_t>(h)] / ranks;
    for (const double value : line) grid.largest = std::max(grid.largest, value);
    grid.values.push_back(std::move(line));
  }
  return grid;
}

}  // namespace farspan::app
