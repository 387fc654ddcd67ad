#include "train/forward_engine.h"

#include <vector>

#include "train/engine.h"
#include "train/run_checkpoint.h"

namespace farspan {

ForwardEngine::ForwardEngine(const config::RunConfig& config, Backend& backend, const Mesh& mesh,
                             const Sizes& sizes, Trace& trace)
    : config_(config),
      backend_(backend),
      mesh_(mesh),
      trace_(trace),
      weights_(backend.device(), sizes.weights, "weights"),
      scratch_(std::make_unique<Arena>(backend.device(), sizes.scratch, "scratch")),
      attention_(make_attention(config.parallel().attention(), config.parallel().invariant())),
      model_(config.model(), compute_dtype(config), parameters_, *attention_) {
  parameters_.allocate_working(weights_, compute_dtype(config));
  model_.allocate(weights_, backend_);
}

void ForwardEngine::reserve(std::size_t scratch_bytes) {
  if (scratch_bytes <= scratch_->capacity()) return;
  FARSPAN_CHECK(scratch_->used() == 0, "scratch grows while in use");
  backend_.stream().synchronize();
  scratch_.reset();  // first: both together may not fit
  scratch_ = std::make_unique<Arena>(backend_.device(), scratch_bytes, "scratch");
}

Tensor ForwardEngine::put(std::span<const std::int32_t> values, std::string_view name) {
  const Tensor t = scratch_->take(DType::kI32, {static_cast<std::int64_t>(values.size())}, name);
  backend_.device().copy(t.data, reinterpret_cast<const std::byte*>(values.data()), t.bytes(),
                         backend_.stream());
  backend_.stream().synchronize();
  return t;
}

TokenTensors ForwardEngine::upload(const MicroBatch& micro_batch) {
  TokenTensors tensors{.tokens = put(micro_batch.tokens, "batch.tokens"),
                       .labels = put(micro_batch.labels, "batch.labels"),
                       .positions = put(micro_batch.positions, "batch.positions")};
  if (const std::int64_t tables = micro_batch.num_tables; tables > 0) {
    tensors.table_ids = put(micro_batch.table_ids, "batch.table_ids");
    tensors.inv_freq = put_tables(*scratch_, backend_, micro_batch.inv_freq, tables);
  }
  return tensors;
}

StepContext ForwardEngine::context(std::span<const AttentionPlan> plans) {
  return {.backend = backend_,
          .saved = *scratch_,
          .scratch = *scratch_,
          .mesh = mesh_,
          .plans = plans,
          .trace = trace_,
          .token_tile = config_.train().token_tile()};
}

void ForwardEngine::read(const Tensor& from, void* to) {
  backend_.device().copy(static_cast<std::byte*>(to), from.data, from.bytes(), backend_.stream());
  backend_.stream().synchronize();
}

void load_weights(ForwardEngine& engine, const CheckpointReader& reader) {
  Backend& backend = engine.backend();
  std::vector<float> host;
  for (const Parameter& p : engine.parameters().parameters()) {
    host.resize(static_cast<std::size_t>(p.numel()));
    read_tensor(reader, p.name, p.shape, host.data());
    auto scope = engine.scratch().scope();
    const bool direct = p.working.dtype == DType::kF32;
    const Tensor to = direct ? p.working : engine.scratch().take(DType::kF32, p.shape, "loading");
    backend.device().copy(to.data, reinterpret_cast<const std::byte*>(host.data()), to.bytes(),
                          backend.stream());
    if (!direct) backend.kernels().copy({.src = to, .dst = p.working}, backend.stream());
    backend.stream().synchronize();
  }
}

}  // namespace farspan
