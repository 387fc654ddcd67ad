// One rank's attention, forward and backward, through the code that training runs.
#pragma once

#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "bench_attention.h"
#include "comm/factory.h"
#include "kernels/backend.h"

namespace farspan::bench {

struct PassSeconds {
  double forward = 0, backward = 0;
  double both() const { return forward + backward; }
};

struct ArenaSizes {
  std::size_t inputs = kDryCapacity, saved = kDryCapacity, scratch = kDryCapacity;
  void grow(const ArenaSizes& other) {
    inputs = std::max(inputs, other.inputs);
    saved = std::max(saved, other.saved);
    scratch = std::max(scratch, other.scratch);
  }
};

// The arenas of one rank, which several runs may use one after the other, as training does.
struct RankMemory {
  Arena inputs, saved, scratch;
  std::vector<std::byte> noise;  // what inputs are filled with; empty: nothing (dry)

  RankMemory(Backend& backend, const ArenaSizes& sizes, DType compute)
      : inputs(backend.device(), sizes.inputs, "inputs"),
        saved(backend.device(), sizes.saved, "saved"),
        scratch(backend.device(), sizes.scratch, "scratch") {
    if (backend.device().id().kind == DeviceKind::kCpu)
      noise = random_bytes(compute, std::int64_t{1} << 18, 7);
  }
};

// A strategy at work on one plan, on any backend and transport. Without biases.
class StrategyRun {
 public:
  StrategyRun(Backend& backend, Communicator& world, RankMemory& memory, const Options& o,
              const AttentionPlan& plan)
      : backend_(backend),
        memory_(memory),
        scope_(memory.inputs.scope()),
        mesh_(world, 1, world.size(), o.ulysses),
        attention_(make_attention(o.strategy)),
        plan_(plan) {
    const ContextPlace place = mesh_.place();
    const std::int64_t rows =
        ulysses_share(plan.local_rows, place.ulysses_rank, place.ulysses_size).size();
    const HeadShape h = o.heads();
    const Shape q{rows, h.num_heads, h.head_dim}, k{rows, h.num_kv_heads, h.head_dim};
    in_ = {input(h.compute, q), input(h.compute, k), input(h.compute, k)};
    dout_ = input(h.compute, q);
    out_ = input(h.compute, q);
    grads_ = {input(DType::kF32, q), input(DType::kF32, k), input(DType::kF32, k)};
  }

  // Seconds of one pass; forward first, then backward.
  double forward(double (*clock)()) {
    kept_.emplace(memory_.saved.scope());
    const double begin = clock();
    const StepContext ctx = context();
    spread_ = attention_->spread(in_, memory_.saved, ctx);
    lse_ = memory_.saved.take(DType::kF32, attention_->lse_shape(spread_), "lse");
    attention_->forward(spread_, out_, lse_, {}, ctx);
    return clock() - begin;
  }
  double backward(double (*clock)()) {
    const double begin = clock();
    attention_->backward(spread_, out_, lse_, dout_, {}, grads_, context());
    const double seconds = clock() - begin;
    kept_.reset();
    trace_.take();
    return seconds;
  }

 private:
  Tensor input(DType dtype, Shape shape) {
    const Tensor t = memory_.inputs.take(dtype, shape, "input");
    const std::size_t period = memory_.noise.size();
    for (std::size_t at = 0; period > 0 && at < t.bytes(); at += period)
      std::memcpy(t.data + at, memory_.noise.data(), std::min(period, t.bytes() - at));
    return t;
  }

  StepContext context() {
    return {backend_, memory_.saved, memory_.scratch, mesh_, {&plan_, 1}, trace_};
  }

  Backend& backend_;
  RankMemory& memory_;
  Arena::Scope scope_;
  std::optional<Arena::Scope> kept_;
  Mesh mesh_;
  std::unique_ptr<Attention> attention_;
  const AttentionPlan& plan_;
  AttentionInputs in_, spread_;
  Tensor dout_, out_, lse_;
  AttentionGradients grads_;
  Trace trace_;
};

// The memory that a rank's run needs, found by running it on the dry backend.
inline ArenaSizes dry_sizes(const Options& o, const AttentionPlan& plan, int rank, int size) {
  const auto backend = make_backend({.kind = DeviceKind::kDry});
  const auto world = make_dry_communicator(rank, size);
  RankMemory memory(*backend, {}, o.compute());
  StrategyRun run(*backend, *world, memory, o, plan);
  run.forward(thread_seconds);
  run.backward(thread_seconds);
  return {memory.inputs.high_water(), memory.saved.high_water(), memory.scratch.high_water()};
}

}  // namespace farspan::bench
