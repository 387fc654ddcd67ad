// One process standing for N ranks: each rank's slices are run in turn, and
//
//   efficiency = T_single(S) / (N max_r T_r)
//
// says what N ranks lose by imbalance and by the cutting of the mask, transfers aside. "Emulated"
// stands beside every figure. T is the processor time of the one thread that computes.
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <utility>

#include "bench_attention.h"
#include "bench_attention_rank.h"
#include "bench_attention_transport.h"
#include "kernels/cpu/attention/attention.h"
#include "kernels/cpu/isa.h"

namespace farspan::bench {
namespace {

// The fastest of several rounds, forward and backward apart.
struct Fastest {
  double forward = INFINITY, backward = INFINITY;
  void add(const PassSeconds& s) {
    forward = std::min(forward, s.forward);
    backward = std::min(backward, s.backward);
  }
  double both() const { return forward + backward; }
};

// Memory for S tokens. Each rank works on its own part of it, each hop on another block of keys, as
// blocks arrive in other buffers than the last.
class KernelRun {
 public:
  KernelRun(const Options& o, std::int64_t tokens)
      : engine_({.isa = o.cpu_isa(), .num_threads = 1}),
        scale_(1.0f / std::sqrt(static_cast<float>(o.head_dim))) {
    const HeadShape h = o.heads();
    const Shape q_shape{tokens, h.num_heads, h.head_dim};
    const Shape k_shape{tokens, h.num_kv_heads, h.head_dim};
    for (Tensor* t : {&q_, &dout_, &out_}) *t = pool_.random(h.compute, q_shape);
    for (Tensor* t : {&k_, &v_}) *t = pool_.random(h.compute, k_shape);
    for (Tensor* t : {&acc_, &dq_}) *t = pool_.random(DType::kF32, q_shape);
    for (Tensor* t : {&dk_, &dv_}) *t = pool_.random(DType::kF32, k_shape);
    for (Tensor* t : {&row_max_, &row_sum_, &lse_, &delta_})
      *t = pool_.random(DType::kF32, {tokens, h.num_heads});
  }

  PassSeconds run(const AttentionPlan& plan, std::int64_t first_row) {
    PassSeconds seconds;
    seconds.forward = seconds_of<thread_seconds>([&] { forward(plan, first_row); });
    seconds.backward = seconds_of<thread_seconds>([&] { backward(plan, first_row); });
    return seconds;
  }
  std::string_view isa() const { return name_of(engine_.isa()); }

 private:
  // (Hq, rows) in the memory of these rows.
  static Tensor stats(const Tensor& t, std::int64_t first_row, std::int64_t rows) {
    return t.rows(first_row, rows).view({t.shape[1], rows});
  }

  void forward(const AttentionPlan& plan, std::int64_t first_row) {
    const std::int64_t n = plan.local_rows;
    std::int64_t key = 0;
    for (std::size_t h = 0; h < plan.hops.size(); ++h) {
      const AttentionPlan::Hop& hop = plan.hops[h];
      engine_.forward({.q = q_.rows(first_row, n),
                       .k = k_.rows(key, hop.kv_rows),
                       .v = v_.rows(key, hop.kv_rows),
                       .acc = acc_.rows(first_row, n),
                       .row_max = stats(row_max_, first_row, n),
                       .row_sum = stats(row_sum_, first_row, n),
                       .slices = hop.slices,
                       .scale = scale_,
                       .first = h == 0,
                       .last = h + 1 == plan.hops.size(),
                       .out = out_.rows(first_row, n),
                       .lse = stats(lse_, first_row, n)});
      key += hop.kv_rows;
    }
  }

  void backward(const AttentionPlan& plan, std::int64_t first_row) {
    const std::int64_t n = plan.local_rows;
    const Tensor delta = stats(delta_, first_row, n);
    engine_.delta(
        {.out = out_.rows(first_row, n), .dout = dout_.rows(first_row, n), .delta = delta});
    std::int64_t key = 0;
    for (const AttentionPlan::Hop& hop : plan.hops) {
      engine_.backward({.q = q_.rows(first_row, n),
                        .k = k_.rows(key, hop.kv_rows),
                        .v = v_.rows(key, hop.kv_rows),
                        .dout = dout_.rows(first_row, n),
                        .lse = stats(lse_, first_row, n),
                        .delta = delta,
                        .dq = dq_.rows(first_row, n),
                        .dk = dk_.rows(key, hop.kv_rows),
                        .dv = dv_.rows(key, hop.kv_rows),
                        .slices = hop.slices,
                        .scale = scale_});
      key += hop.kv_rows;
    }
  }

  cpu::AttentionEngine engine_;
  TensorPool pool_;
  float scale_;
  Tensor q_, k_, v_, dout_, out_, acc_, dq_, dk_, dv_, row_max_, row_sum_, lse_, delta_;
};

// The plans of N ranks under one layout, and their times.
struct Emulation {
  std::string layout;
  std::vector<AttentionPlan> plans;
  std::vector<std::int64_t> first_row;
  std::vector<Fastest> seconds;

  Emulation(std::string_view kind, const Problem& problem, const Options& o)
      : layout(kind), seconds(static_cast<std::size_t>(o.ranks)) {
    const SequenceLayout cut = make_layout(kind, problem, o.heads(), o.ranks);
    const AttentionPlanner planner =
        make_planner(problem, cut, o.heads(), o.strategy == "allgather");
    std::int64_t row = 0;
    for (int r = 0; r < o.ranks; ++r) {
      plans.push_back(planner.plan(r));
      first_row.push_back(row);
      row += plans.back().local_rows;
    }
  }

  double pairs() const {
    return std::accumulate(plans.begin(), plans.end(), 0.0,
                           [](double sum, const auto& plan) { return sum + plan.visible_pairs; });
  }
};

struct Ratio {
  double max = 0, sum = 0;
  int count = 0;
  void add(double x) { max = std::max(max, x), sum += x, ++count; }
  double max_over_mean() const { return sum > 0 ? max * count / sum : 1; }
  double mean() const { return sum / count; }
};

struct Row {
  double forward, backward, both;  // efficiencies T_single / (N max_r T_r)
  double work;                     // T_single / sum_r T_r: what the cutting itself costs
  double gflops_single, gflops;    // of visible pairs, per rank at the pace of the slowest one
  Ratio area, tokens, slices;
};

Row summarize(const Emulation& e, const Fastest& single, const Options& o) {
  Row row{};
  Ratio forward, backward, both;
  for (std::size_t r = 0; r < e.plans.size(); ++r) {
    forward.add(e.seconds[r].forward);
    backward.add(e.seconds[r].backward);
    both.add(e.seconds[r].both());
    row.area.add(e.plans[r].visible_pairs);
    row.tokens.add(static_cast<double>(e.plans[r].local_rows));
    double slices = 0;
    for (const auto& hop : e.plans[r].hops) slices += static_cast<double>(hop.slices.size());
    row.slices.add(slices);
  }
  const double n = o.ranks, pairs = e.pairs();
  const double flops = forward_flops(pairs, o.heads()) + backward_flops(pairs, o.heads());
  row.forward = single.forward / (n * forward.max);
  row.backward = single.backward / (n * backward.max);
  row.both = single.both() / (n * both.max);
  row.work = single.both() / both.sum;
  row.gflops_single = flops * 1e-9 / single.both();
  row.gflops = flops * 1e-9 / (n * both.max);
  return row;
}

void print_row(const Problem& problem, const Emulation& e, const Row& row, const Row& causal,
               const Options& o, std::string_view isa) {
  const double lost = 1 - row.both / causal.both, rate_lost = 1 - row.gflops / causal.gflops;
  if (o.json) {
    const nlohmann::ordered_json result = {{"emulated", true},
                                           {"whole", o.whole},
                                           {"isa", isa},
                                           {"dtype", o.dtype},
                                           {"documents", problem.name},
                                           {"layout", e.layout},
                                           {"ranks", o.ranks},
                                           {"tokens", problem.tokens()},
                                           {"q_heads", o.q_heads},
                                           {"kv_heads", o.kv_heads},
                                           {"head_dim", o.head_dim},
                                           {"visible_pairs", e.pairs()},
                                           {"efficiency_forward", row.forward},
                                           {"efficiency_backward", row.backward},
                                           {"efficiency", row.both},
                                           {"work_efficiency", row.work},
                                           {"gflops_single", row.gflops_single},
                                           {"gflops_per_rank", row.gflops},
                                           {"lost_against_causal", lost},
                                           {"rate_lost_against_causal", rate_lost},
                                           {"area_max_over_mean", row.area.max_over_mean()},
                                           {"tokens_max_over_mean", row.tokens.max_over_mean()},
                                           {"slices_per_rank", row.slices.mean()}};
    fmt::print("{}\n", result.dump());
  } else {
    fmt::print(
        "{:28} {:10} {:>6.3f} {:>6.3f} {:>6.3f} {:>5.1f}% {:>6.3f} {:>7.1f} {:>7.1f} {:>5.1f}% "
        "{:>6.3f} {:>6.3f} {:>6.0f}\n",
        problem.name, e.layout, row.forward, row.backward, row.both, 100 * lost, row.work,
        row.gflops_single, row.gflops, 100 * rate_lost, row.area.max_over_mean(),
        row.tokens.max_over_mean(), row.slices.mean());
  }
  std::fflush(stdout);
}

// Runs one rank's plan, by its kernels alone or as the whole strategy without its transfers.
class Runner {
 public:
  Runner(const Options& o, std::int64_t tokens) : o_(o) {
    if (o.whole)
      backend_ = make_backend({.num_threads = 1, .cpu_isa = o.cpu_isa()});
    else
      kernels_ = std::make_unique<KernelRun>(o, tokens);
  }

  // Memory for this plan too. Before any run.
  void prepare(const AttentionPlan& plan, int rank, int size) {
    if (o_.whole) sizes_.grow(dry_sizes(o_, plan, rank, size));
  }

  PassSeconds run(const AttentionPlan& plan, int rank, int size, std::int64_t first_row) {
    if (kernels_) return kernels_->run(plan, first_row);
    if (!memory_) memory_ = std::make_unique<RankMemory>(*backend_, sizes_, o_.compute());
    TransportControl control{.mode = TransportMode::kSilent, .clock = thread_seconds};
    BenchTransport world(make_dry_communicator(rank, size), control);
    StrategyRun run(*backend_, world, *memory_, o_, plan);
    PassSeconds seconds;
    seconds.forward = run.forward(thread_seconds) - std::exchange(control.inside, 0);
    seconds.backward = run.backward(thread_seconds) - control.inside;
    return seconds;
  }

  std::string description() const {
    return kernels_ ? std::string(kernels_->isa()) : backend_->description();
  }

 private:
  const Options& o_;
  std::unique_ptr<KernelRun> kernels_;
  std::unique_ptr<Backend> backend_;
  ArenaSizes sizes_{0, 0, 0};
  std::unique_ptr<RankMemory> memory_;
};

// Runs each rank of every layout, and one rank alone, in turns. Prints a row for each layout.
// `causal`: the row that losses refer to; set to the first one printed when it is empty.
void emulate(const Problem& problem, const std::vector<std::string>& layouts,
             std::optional<Row>& causal, const Options& o) {
  Runner runner(o, problem.tokens());
  const AttentionPlan whole = single_plan(problem, o.heads(), o.strategy == "allgather");
  runner.prepare(whole, 0, 1);
  std::vector<Emulation> emulations;
  for (const std::string& layout : layouts) {
    const Emulation& e = emulations.emplace_back(layout, problem, o);
    FARSPAN_CHECK(std::abs(e.pairs() - whole.visible_pairs) <= 1e-9 * whole.visible_pairs,
                  "{}: {} pairs on {} ranks, {} on one", e.layout, e.pairs(), o.ranks,
                  whole.visible_pairs);
    for (int r = 0; r < o.ranks; ++r)
      runner.prepare(e.plans[static_cast<std::size_t>(r)], r, o.ranks);
  }
  Fastest single;
  for (int i = 0; i < o.repeat; ++i) {  // taking turns, so that all see the same machine
    single.add(runner.run(whole, 0, 1, 0));
    for (Emulation& e : emulations)
      for (int r = 0; r < o.ranks; ++r) {
        const auto at = static_cast<std::size_t>(r);
        e.seconds[at].add(runner.run(e.plans[at], r, o.ranks, e.first_row[at]));
      }
  }
  for (const Emulation& e : emulations) {
    const Row row = summarize(e, single, o);
    if (!causal) causal = row;
    print_row(problem, e, row, *causal, o, runner.description());
  }
}

}  // namespace

void run_emulated(const Options& o) {
  const std::int64_t tokens = o.tokens.front();
  if (!o.json)
    fmt::print(
        "{} ranks, emulated ({}, one thread each): {} tokens, {} {}/{} heads x {}, fastest of {}\n"
        "fwd, bwd, both: T_single / (N max T_r); lost: of that, against causal zigzag; work: "
        "T_single "
        "/ sum T_r;\nGFLOP/s of visible pairs: one rank alone, each of N, lost against causal "
        "zigzag; "
        "area, tokens: max / mean\n"
        "{:28} {:10} {:>6} {:>6} {:>6} {:>6} {:>6} {:>7} {:>7} {:>6} {:>6} {:>6} {:>6}\n",
        o.ranks, o.whole ? "whole " + o.strategy + " without transfers" : "kernels alone", tokens,
        o.dtype, o.q_heads, o.kv_heads, o.head_dim, o.repeat, "documents", "layout", "fwd", "bwd",
        "both", "lost", "work", "single", "each", "lost", "area", "tokens", "slices");
  std::vector<std::string> layouts = o.layouts;
  std::erase(layouts, "zigzag");
  layouts.insert(layouts.begin(), "zigzag");  // the reference comes first
  std::optional<Row> causal;
  std::vector<std::string> documents = o.documents;
  std::erase(documents, "one");
  documents.insert(documents.begin(), "one");
  for (const std::string& name : documents) {
    Problem problem{.name = name == "one" ? "causal" : name,
                    .pattern = {},
                    .segments = segments_of(document_lengths(name, tokens, o.seed)),
                    .positions = {}};
    emulate(problem, name == "one" ? layouts : o.layouts, causal, o);
  }
}

}  // namespace farspan::bench
