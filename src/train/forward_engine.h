// One rank's model for passes without gradients, on any backend: weights and scratch, no gradients,
// no optimizer. Run on the dry backend it says how much memory a pass takes
// (train/inference_model.h does that).
//
//   ForwardEngine engine(config, backend, mesh, {.weights = ..., .scratch = ...}, trace);
//   load_weights(engine, reader);
//   auto scope = engine.scratch().scope();
//   const TokenTensors batch = engine.upload(micro_batch);
//   const Tensor nll = engine.scratch().take(DType::kF32, {num_tokens}, "nll");
//   engine.model().forward(batch, sums, nll, engine.context(micro_batch));
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "config/run_config.pb.h"
#include "io/checkpoint.h"
#include "model/transformer.h"
#include "parallel/mesh.h"
#include "train/micro_batch.h"

namespace farspan {

class ForwardEngine {
 public:
  // Capacities of the arenas, bytes.
  struct Sizes {
    std::size_t weights = kDryCapacity / 8;  // in the compute dtype, and the model's tables
    std::size_t scratch = kDryCapacity / 8;  // everything that a pass takes
  };

  // `config`: resolved, parallel.attention chosen. What is referred to must outlive the engine.
  // Weights are undefined until they are loaded. Throws Error(kExhausted).
  ForwardEngine(const config::RunConfig& config, Backend& backend, const Mesh& mesh,
                const Sizes& sizes, Trace& trace);

  const config::RunConfig& config() const { return config_; }
  const Transformer& model() const { return model_; }
  // Reads the weights by the scaling, window and layer types that config() has now. Between passes.
  void follow_config() { model_.change(config_.model(), *attention_, backend_); }
  Backend& backend() const { return backend_; }
  const Mesh& mesh() const { return mesh_; }
  Trace& trace() const { return trace_; }
  ParameterStore& parameters() { return parameters_; }
  const Arena& weights() const { return weights_; }
  // Empty between passes.
  Arena& scratch() { return *scratch_; }
  // Room for passes that take this much; between passes only. Throws Error(kExhausted).
  void reserve(std::size_t scratch_bytes);

  // Copies to the device, in order on the backend's stream; the host's memory may go. Tensors come
  // from scratch().
  Tensor put(std::span<const std::int32_t> values, std::string_view name);
  // Tokens and positions, and labels where the micro-batch has them.
  TokenTensors upload(const MicroBatch& micro_batch);
  // What the model runs a pass with; `plans` must outlive it.
  StepContext context(std::span<const AttentionPlan> plans);
  StepContext context(const MicroBatch& micro_batch) { return context(micro_batch.plans); }
  // To the host; waits for the device.
  void read(const Tensor& from, void* to);

 private:
  const config::RunConfig& config_;
  Backend& backend_;
  const Mesh& mesh_;
  Trace& trace_;
  Arena weights_;
  std::unique_ptr<Arena> scratch_;
  std::unique_ptr<Attention> attention_;
  ParameterStore parameters_;
  Transformer model_;
};

// The weights of a checkpoint, converted to the compute dtype; nothing else of it is read. Throws
// Error(kBadData) when a tensor is missing or has another shape.
void load_weights(ForwardEngine& engine, const CheckpointReader& reader);

}  // namespace farspan
