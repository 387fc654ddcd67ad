// The whole matrix, with a table of the worst deviations by strategy and layout.
//
//   build/cpu/sharding_matrix [--out docs/benchmarks/sharding_matrix.md] [--only TEXT]
//
// --only runs the cells whose names contain TEXT ("P 3", "balanced ring", "alibi"). Exit status 1
// when a cell deviates by more than 1e-6 (loss), 1e-5 (gradient norm) or 1e-4 (a gradient).
#include "train/sharding_matrix.h"

#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <fstream>
#include <string_view>

namespace {

using farspan::testing::Deviation;
using farspan::testing::MatrixCell;

struct Worst {
  int cells = 0;
  Deviation deviation;

  void add(const Deviation& d) {
    ++cells;
    deviation.loss = std::max(deviation.loss, d.loss);
    deviation.grad_norm = std::max(deviation.grad_norm, d.grad_norm);
    deviation.gradient = std::max(deviation.gradient, d.gradient);
  }
  std::string row() const {
    return fmt::format("{} | {:.1e} | {:.1e} | {:.1e} |", cells, deviation.loss,
                       deviation.grad_norm, deviation.gradient);
  }
};

constexpr const char* kHead =
    " | cells | loss | gradient norm | a gradient |\n|---|---|---|---|---|\n";

struct Report {
  std::map<std::string, Worst> by_kind, by_mask, by_ranks;
  Worst all;

  void add(const MatrixCell& cell, const Deviation& d) {
    by_kind[cell.strategy + ", " + cell.layout].add(d);
    by_mask[cell.mask + (cell.packed ? ", packed" : ", one document")].add(d);
    by_ranks[fmt::format("{}", cell.context)].add(d);
    all.add(d);
  }

  static std::string table(const std::string& title, const std::map<std::string, Worst>& rows) {
    std::string out = "| " + title + kHead;
    for (const auto& [name, worst] : rows) out += fmt::format("| {} | {}\n", name, worst.row());
    return out;
  }

  std::string markdown(double seconds) const {
    const std::string backend =
        farspan::make_backend({.kind = farspan::DeviceKind::kCpu})->description();
    return fmt::format(
        R"(# One answer under any sharding

Largest deviations from one rank of one optimizer step of the engine in fp32, on thread ranks: {{P = 1, 2, 3, 4, 8}} x {{layout}} x
{{strategy}} x {{packed documents or one}} x {{mask}} x {{accumulation 1, 2}} x {{data ranks 1, 2}}; masks beyond full, window,
sinks+window and alibi with accumulation 1 and one data rank. A hybrid runs with every size of its all-to-all groups between 1
and P. Relative deviation of the loss and of the gradient norm, relative L2 over each parameter's gradient; the limits are 1e-6,
1e-5 and 1e-4.

Model: 2 layers, hidden 32, 24 query heads on 4 key/value heads of dimension 8; 4 sequences of 89 tokens, documents of 1 to 40
tokens where packed; window 13, 3 sinks (the others: `matrix_model()` in `tests/train/sharding_matrix.h`).

    build/cpu/sharding_matrix --out docs/benchmarks/sharding_matrix.md     (or ctest --preset cpu-all -L matrix)

{} cells in {:.0f} s; {}.

{}
{}
{})",
        all.cells, seconds, backend, table("strategy, layout", by_kind), table("mask", by_mask),
        table("P", by_ranks));
  }
};

}  // namespace

int main(int argc, char** argv) {
  std::string out, only;
  for (int i = 1; i < argc; i += 2) {
    const std::string_view option = argv[i];
    if (i + 1 < argc && option == "--out") {
      out = argv[i + 1];
    } else if (i + 1 < argc && option == "--only") {
      only = argv[i + 1];
    } else {
      const bool asked = option == "--help" || option == "-h";
      fmt::print(asked ? stdout : stderr,
                 "sharding_matrix [--out FILE.md] [--only TEXT]: loss and gradients under every "
                 "sharding against one rank\n--only runs the cells whose names contain TEXT, such "
                 "as \"P 3\", \"balanced ring\" or \"alibi\"\n");
      return asked ? 0 : 2;
    }
  }
  const auto begin = std::chrono::steady_clock::now();
  farspan::testing::MatrixRunner runner;
  Report report;
  int failures = 0;
  for (const MatrixCell& cell : farspan::testing::whole_matrix()) {
    if (cell.name().find(only) == std::string::npos) continue;
    Deviation d;
    try {
      d = runner.run(cell);
    } catch (const std::exception& e) {
      d.loss = std::numeric_limits<double>::infinity();
      fmt::print("{}\n", e.what());
    }
    report.add(cell, d);
    if (d.within_limits()) continue;
    ++failures;
    fmt::print("FAILED {}: loss {:.1e}, gradient norm {:.1e}, gradient {:.1e} ({})\n", cell.name(),
               d.loss, d.grad_norm, d.gradient, d.where);
    std::fflush(stdout);
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  const std::string text = report.markdown(seconds.count());
  fmt::print("{}\n{} of {} cells failed\n", text, failures, report.all.cells);
  if (!out.empty()) std::ofstream(out) << text;
  return failures == 0 && report.all.cells > 0 ? 0 : 1;
}
