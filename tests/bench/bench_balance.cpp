// What the balanced layout reaches by kind of document lengths, beside plain zigzag and the lower
// bound, and how long it takes: docs/benchmarks/balanced_layout.md. Prints; judges nothing.
//
//   build/cpu/bench_balance --tokens 1048576 --ranks 32 --seeds 3 --repeats 5
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdint>
#include <ctime>
#include <random>
#include <vector>

#include "parallel/attention_plan.h"
#include "parallel/balance.h"
#include "tests/parallel/document_lengths.h"

using farspan::AttentionPattern;
using farspan::BalanceRequest;
using farspan::LayoutKind;
using farspan::LayoutQuality;
using farspan::RowArea;
using farspan::SequenceLayout;

namespace {

double cpu_milliseconds(std::clock_t since) {  // CPU time: others may use the machine
  return 1e3 * static_cast<double>(std::clock() - since) / CLOCKS_PER_SEC;
}

// Of one rank's plan, the rank with the most runs.
double plan_milliseconds(const SequenceLayout& layout, const std::vector<std::int64_t>& lengths,
                         const AttentionPattern& pattern) {
  std::vector<std::int32_t> segments;
  for (std::size_t i = 0; i < lengths.size(); ++i)
    segments.insert(segments.end(), static_cast<std::size_t>(lengths[i]),
                    static_cast<std::int32_t>(i));
  int rank = 0;
  for (int r = 0; r < layout.num_ranks(); ++r)
    if (layout.ranges(r).size() > layout.ranges(rank).size()) rank = r;
  const std::clock_t start = std::clock();
  const farspan::AttentionPlan plan =
      farspan::plan_attention({.segments = segments, .layout = layout, .pattern = pattern}, rank);
  return plan.hops.empty() ? 0 : cpu_milliseconds(start);
}

}  // namespace

int main(int argc, char** argv) {
  std::int64_t tokens = 1 << 20, window = 0;
  int ranks = 32, seeds = 3, repeats = 5;
  bool hard = true;
  CLI::App app{"Balanced layouts by kind of document lengths"};
  app.add_option("--tokens", tokens, "tokens of packed documents")->check(CLI::PositiveNumber);
  app.add_option("--ranks", ranks, "places of the ring")->check(CLI::Range(2, 4096));
  app.add_option("--window", window, "sliding window (0: full causal)");
  app.add_option("--seeds", seeds, "draws per kind")->check(CLI::PositiveNumber);
  app.add_option("--repeats", repeats, "times each layout is computed")->check(CLI::PositiveNumber);
  app.add_option("--hard", hard, "also the kinds made to be hard");
  CLI11_PARSE(app, argc, argv);

  AttentionPattern pattern;
  pattern.window = window;
  const std::vector<RowArea> areas{RowArea(pattern)};
  std::vector<farspan::testing::LengthKind> kinds = farspan::testing::usual_lengths();
  for (auto& kind : farspan::testing::hard_lengths())
    if (hard) kinds.push_back(std::move(kind));
  fmt::print(
      "{} tokens, {} ranks, window {}; bytes in % of the full ring's; CPU ms: median of {}\n\n",
      tokens, ranks, window, repeats);
  fmt::print(
      "| lengths | seed | documents | zigzag: area, bytes | area | tokens | bytes | bound | "
      "aim | runs a rank, mean / max | CPU ms | its plan "
      "|\n|---|---|---|---|---|---|---|---|---|---|---|---|\n");
  for (const auto& kind : kinds) {
    for (int seed = 0; seed < seeds; ++seed) {
      std::mt19937_64 rng(static_cast<std::uint64_t>(seed));
      const std::vector<std::int64_t> lengths = kind.draw(rng, tokens);
      const BalanceRequest request{.documents = lengths, .ranks = ranks, .areas = areas};
      const double ring = ring_rows(request) / 100;
      std::vector<double> milliseconds;
      SequenceLayout layout = SequenceLayout::make(LayoutKind::kContiguous, 1, tokens, ranks);
      for (int i = 0; i < repeats; ++i) {
        const std::clock_t start = std::clock();
        layout = balanced_layout(request);
        milliseconds.push_back(cpu_milliseconds(start));
      }
      std::sort(milliseconds.begin(), milliseconds.end());
      const LayoutQuality q = measure(layout, request);
      const LayoutQuality z =
          measure(SequenceLayout::make(LayoutKind::kZigzag, 1, tokens, ranks), request);
      const double bound = traffic_lower_bound(request) / ring;
      fmt::print(
          "| {} | {} | {} | {:.2f}, {:.1f} | {:.3f} | {:.3f} | {:.2f} | {:.2f} | {:.2f} | "
          "{:.0f} / {} | {:.1f} | {:.1f} |\n",
          kind.name, seed, lengths.size(), z.area_max_over_mean, z.rows_forwarded / ring,
          q.area_max_over_mean, q.tokens_max_over_mean, q.rows_forwarded / ring, bound,
          1.5 * bound + 4, static_cast<double>(q.runs) / ranks, q.max_runs_of_place,
          milliseconds[milliseconds.size() / 2], plan_milliseconds(layout, lengths, pattern));
    }
  }
  return 0;
}
