// Ranks at work side by side: attention with its transfers behind the compute, with every transfer
// waited for, and without transfers.
#include <nlohmann/json.hpp>

#include "bench_attention.h"
#include "bench_attention_rank.h"
#include "bench_attention_transport.h"

namespace farspan::bench {
namespace {

struct Modes {
  Timing overlapped, serialized, silent;      // forward and backward, slowest rank
  Timing overlapped_waits, serialized_waits;  // of that, waiting for messages
};

double slowest(Communicator& world, double seconds) {
  Stream stream;
  world.all_reduce(host_tensor(&seconds, {1}), ReduceOp::kMax, stream).wait();
  return seconds;
}

Modes measure(const Options& o, const AttentionPlan& plan, Communicator& world) {
  TransportControl control{.clock = wall_seconds};
  BenchTransport transport(world, control);
  const auto backend = make_backend({.num_threads = o.threads, .cpu_isa = o.cpu_isa()});
  RankMemory memory(*backend, dry_sizes(o, plan, world.rank(), world.size()), o.compute());
  StrategyRun run(*backend, transport, memory, o, plan);
  Modes modes;
  for (int i = -1; i < o.repeat; ++i)  // the first round warms up
    for (const auto& [mode, timing] : {std::pair{TransportMode::kOverlapped, &modes.overlapped},
                                       {TransportMode::kSerialized, &modes.serialized},
                                       {TransportMode::kSilent, &modes.silent}}) {
      control.mode = mode, control.inside = 0, control.waited = 0;
      world.barrier();
      const PassSeconds seconds = run.run(wall_seconds);
      const double most = slowest(world, seconds.both() - control.inside);
      const double waited = slowest(world, control.waited);
      if (i < 0) continue;
      timing->add(most);
      if (mode == TransportMode::kOverlapped) modes.overlapped_waits.add(waited);
      if (mode == TransportMode::kSerialized) modes.serialized_waits.add(waited);
    }
  return modes;
}

void print_row(const Options& o, std::string_view transport, const Problem& problem,
               std::string_view layout, const AttentionBytes& bytes, const Modes& m) {
  const double behind = m.overlapped_waits.fastest(), before = m.serialized_waits.fastest();
  const std::int64_t sent = bytes.forward + bytes.backward;
  const std::int64_t per_rank = problem.tokens() / o.ranks;
  if (o.json) {
    const nlohmann::ordered_json result = {
        {"transport", transport},
        {"progress_thread", !o.no_progress},
        {"strategy", o.strategy},
        {"layout", layout},
        {"documents", problem.name},
        {"ranks", o.ranks},
        {"tokens_per_rank", per_rank},
        {"dtype", o.dtype},
        {"q_heads", o.q_heads},
        {"kv_heads", o.kv_heads},
        {"head_dim", o.head_dim},
        {"bytes_sent", sent},
        {"compute_seconds", m.silent.fastest()},
        {"overlapped_seconds", m.overlapped.fastest()},
        {"serialized_seconds", m.serialized.fastest()},
        {"compute_seconds_median", m.silent.median()},
        {"overlapped_seconds_median", m.overlapped.median()},
        {"serialized_seconds_median", m.serialized.median()},
        {"serialized_waits", before},
        {"overlapped_waits", behind},
        {"serialized_waits_median", m.serialized_waits.median()},
        {"overlapped_waits_median", m.overlapped_waits.median()}};
    fmt::print("{}\n", result.dump());
  } else {
    fmt::print(
        "{:20} {:10} {:>8} {:>8.2f} {:>9.3f} {:>10.3f} {:>10.3f} {:>10.3f} {:>10.3f} {:>6.0f}%\n",
        problem.name, layout, per_rank, static_cast<double>(sent) * 1e-6, m.silent.fastest() * 1e3,
        m.overlapped.fastest() * 1e3, m.serialized.fastest() * 1e3, before * 1e3, behind * 1e3,
        before > 0 ? 100 * (1 - behind / before) : 0);
  }
  std::fflush(stdout);
}

}  // namespace

void run_overlap(const Options& o, Communicator& world) {
  const bool prints = world.rank() == 0;
  if (prints && !o.json)
    fmt::print(
        "{} of {} ranks ({}{}), {} {}/{} heads x {}: forward and backward, ms, slowest rank, "
        "fastest "
        "of {}\n{:20} {:10} {:>8} {:>8} {:>9} {:>21} {:>21}\n"
        "{:20} {:10} {:>8} {:>8} {:>9} {:>10} {:>10} {:>10} {:>10} {:>7}\n",
        o.strategy, o.ranks, world.transport(), o.no_progress ? ", no progress thread" : "",
        o.dtype, o.q_heads, o.kv_heads, o.head_dim, o.repeat, "", "", "", "", "compute",
        "with transfers", "of that waiting", "documents", "layout", "tok/rank", "MB sent", "alone",
        "overlapped", "serialized", "serialized", "overlapped", "hidden");
  for (const std::int64_t tokens : o.tokens)
    for (const std::string& documents : o.documents) {
      Problem problem{.name = documents, .pattern = {}, .segments = {}, .positions = {}};
      problem.segments = segments_of(document_lengths(documents, tokens * o.ranks, o.seed));
      for (const std::string& layout : o.layouts) {
        const AttentionPlan plan =
            make_planner(problem, make_layout(layout, problem, o.heads(), o.ranks / o.ulysses),
                         o.heads(), o.strategy == "allgather", world.rank() % o.ulysses, o.ulysses)
                .plan(world.rank() / o.ulysses);
        const Modes modes = measure(o, plan, world);
        const ContextPlace place{.ring_rank = world.rank() / o.ulysses,
                                 .ring_size = o.ranks / o.ulysses,
                                 .ulysses_rank = world.rank() % o.ulysses,
                                 .ulysses_size = o.ulysses};
        if (prints)
          print_row(o, world.transport(), problem, layout,
                    attention_bytes(o.strategy, plan, place, o.heads(), false), modes);
      }
    }
}

}  // namespace farspan::bench
