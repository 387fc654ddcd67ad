// Ranks at work side by side: attention with its transfers behind the compute, with every transfer
// waited for, and without transfers.
#include <nlohmann/json.hpp>

#include "bench_attention.h"
#include "bench_attention_rank.h"
#include "bench_attention_transport.h"

namespace farspan::bench {
namespace {

// One pass, forward or backward, of the slowest rank.
struct Pass {
  Timing overlapped, serialized, silent;
  Timing overlapped_waits, serialized_waits;  // of that, waiting for messages

  void add(TransportMode mode, double seconds, double waited) {
    if (mode == TransportMode::kSilent) {
      silent.add(seconds);
    } else if (mode == TransportMode::kOverlapped) {
      overlapped.add(seconds), overlapped_waits.add(waited);
    } else {
      serialized.add(seconds), serialized_waits.add(waited);
    }
  }
};

struct Passes {
  Pass forward, backward;
};

double slowest(Communicator& world, double seconds) {
  Stream stream;
  world.all_reduce(host_tensor(&seconds, {1}), ReduceOp::kMax, stream).wait();
  return seconds;
}

Passes measure(const Options& o, const AttentionPlan& plan, Communicator& world) {
  TransportControl control{.clock = wall_seconds};
  BenchTransport transport(world, control);
  const auto backend = make_backend({.num_threads = o.threads, .cpu_isa = o.cpu_isa()});
  RankMemory memory(*backend, dry_sizes(o, plan, world.rank(), world.size()), o.compute());
  StrategyRun run(*backend, transport, memory, o, plan);
  Passes passes;
  for (int i = -1; i < o.repeat; ++i)  // the first round warms up
    for (const TransportMode mode :
         {TransportMode::kOverlapped, TransportMode::kSerialized, TransportMode::kSilent}) {
      const auto pass = [&](Pass& into, const auto& body) {
        control = {.mode = mode, .clock = wall_seconds};
        world.barrier();
        const double seconds = slowest(world, body() - control.inside);
        const double waited = slowest(world, control.waited);
        if (i >= 0) into.add(mode, seconds, waited);
      };
      pass(passes.forward, [&] { return run.forward(wall_seconds); });
      pass(passes.backward, [&] { return run.backward(wall_seconds); });
    }
  return passes;
}

struct Setting {
  std::string_view transport, documents, layout;
  std::int64_t tokens_per_rank;
};

void print_pass(const Options& o, const Setting& setting, std::string_view name, std::int64_t bytes,
                const Pass& p) {
  const double before = p.serialized_waits.median(), behind = p.overlapped_waits.median();
  if (o.json) {
    const nlohmann::ordered_json result = {{"transport", setting.transport},
                                           {"progress_thread", !o.no_progress},
                                           {"strategy", o.strategy},
                                           {"layout", setting.layout},
                                           {"documents", setting.documents},
                                           {"ranks", o.ranks},
                                           {"tokens_per_rank", setting.tokens_per_rank},
                                           {"dtype", o.dtype},
                                           {"q_heads", o.q_heads},
                                           {"kv_heads", o.kv_heads},
                                           {"head_dim", o.head_dim},
                                           {"pass", name},
                                           {"bytes_sent", bytes},
                                           {"compute_seconds", p.silent.fastest()},
                                           {"overlapped_seconds", p.overlapped.fastest()},
                                           {"serialized_seconds", p.serialized.fastest()},
                                           {"compute_seconds_median", p.silent.median()},
                                           {"overlapped_seconds_median", p.overlapped.median()},
                                           {"serialized_seconds_median", p.serialized.median()},
                                           {"serialized_waits_median", before},
                                           {"overlapped_waits_median", behind}};
    fmt::print("{}\n", result.dump());
  } else {
    fmt::print("{:20} {:10} {:>8} {:8} {:>8.2f} {:>9.3f} {:>10.3f} {:>10.3f} {:>10.3f} {:>10.3f}\n",
               setting.documents, setting.layout, setting.tokens_per_rank, name,
               static_cast<double>(bytes) * 1e-6, p.silent.median() * 1e3,
               p.overlapped.median() * 1e3, p.serialized.median() * 1e3, before * 1e3,
               behind * 1e3);
  }
  std::fflush(stdout);
}

}  // namespace

void run_overlap(const Options& o, Communicator& world) {
  const bool prints = world.rank() == 0;
  if (prints && !o.json)
    fmt::print(
        "{} of {} ranks ({}{}), {} {}/{} heads x {}: ms of the slowest rank, median of {}\n"
        "{:20} {:10} {:>8} {:8} {:>8} {:>9} {:>21} {:>21}\n"
        "{:20} {:10} {:>8} {:8} {:>8} {:>9} {:>10} {:>10} {:>10} {:>10}\n",
        o.strategy, o.ranks, world.transport(), o.no_progress ? ", no progress thread" : "",
        o.dtype, o.q_heads, o.kv_heads, o.head_dim, o.repeat, "", "", "", "", "", "compute",
        "with transfers", "of that waiting", "documents", "layout", "tok/rank", "pass", "MB sent",
        "alone", "overlapped", "serialized", "serialized", "overlapped");
  for (const std::int64_t tokens : o.tokens)
    for (const std::string& documents : o.documents) {
      Problem problem{.name = documents, .pattern = {}, .segments = {}, .positions = {}};
      problem.segments = segments_of(document_lengths(documents, tokens * o.ranks, o.seed));
      for (const std::string& layout : o.layouts) {
        const AttentionPlan plan =
            make_planner(problem, make_layout(layout, problem, o.heads(), o.ranks / o.ulysses),
                         o.heads(), o.strategy == "allgather", world.rank() % o.ulysses, o.ulysses)
                .plan(world.rank() / o.ulysses);
        const Passes passes = measure(o, plan, world);
        if (!prints) continue;
        const ContextPlace place{.ring_rank = world.rank() / o.ulysses,
                                 .ring_size = o.ranks / o.ulysses,
                                 .ulysses_rank = world.rank() % o.ulysses,
                                 .ulysses_size = o.ulysses};
        const AttentionBytes bytes = attention_bytes(o.strategy, plan, place, o.heads(), false);
        const Setting setting{world.transport(), documents, layout, tokens};
        print_pass(o, setting, "forward", bytes.forward, passes.forward);
        print_pass(o, setting, "backward", bytes.backward, passes.backward);
      }
    }
}

}  // namespace farspan::bench
