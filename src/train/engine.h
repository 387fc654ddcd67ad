// One rank's model, optimizer and memory, and the two things done with them: an optimizer step and
// an evaluation pass. The engine runs unchanged on the dry backend, which is how its memory is
// known before it is allocated (train/dry_run.h).
//
//   Engine engine(config, backend, mesh, sizes, trace);
//   engine.initialize();
//   engine.train_step(micro_batches, lr, {});
//   StepResult r = engine.read_step();
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "config/run_config.pb.h"
#include "model/transformer.h"
#include "optim/adamw.h"
#include "parallel/mesh.h"
#include "train/invariant_step.h"
#include "train/micro_batch.h"
#include "train/pass_graphs.h"
#include "train/scoring_pass.h"

namespace farspan {

// Capacities of an engine's arenas, bytes.
struct ArenaSizes {
  std::size_t weights = kDryCapacity;      // f32 masters and the compute copy
  std::size_t gradients = kDryCapacity;    // f32
  std::size_t optimizer = kDryCapacity;    // f32 moments, device scalars
  std::size_t activations = kDryCapacity;  // kept from forward to backward
  std::size_t scratch = kDryCapacity;      // temporaries, transfer buffers
  std::size_t batch = kDryCapacity;        // tokens
  std::size_t host = kDryCapacity;         // offloaded activations, in (pinned) host memory

  std::size_t on_device() const {
    return weights + gradients + optimizer + activations + scratch + batch;
  }
};

// What a rank tells the others with a step, so that all act on it after the same step.
struct HostFlags {
  bool stop_requested = false;  // by a signal
  bool save_failed = false;     // a checkpoint under way could not be written
};

// Sums of one optimizer step over all ranks, read back to the host.
struct StepResult {
  double loss_sum = 0;  // nats
  double valid_tokens = 0;
  double visible_pairs = 0;  // attention area of the step
  HostFlags flags;           // raised by any rank
  double grad_norm = 0;
  std::int64_t applied_steps = 0, skipped_steps = 0;  // since the start of the run
  double loss() const { return loss_sum / valid_tokens; }
};

struct EvalResult {
  double loss_sum = 0;
  double valid_tokens = 0;
  double loss() const { return loss_sum / valid_tokens; }
};

class Engine {
 public:
  // Everything referred to must outlive the engine. Throws Error(kExhausted) when memory runs out.
  Engine(const config::RunConfig& config, Backend& backend, const Mesh& mesh,
         const ArenaSizes& sizes, Trace& trace);

  // Weights from the configuration's seed, moments zero, counters zero.
  void initialize();

  // Goes on in another stage of a curriculum: with the ranks in `mesh`, and the strategy, masks and
  // rotary tables of `config`, which otherwise is the one that it was made with. Weights, moments
  // and memory stay where they are. Between passes; collective in that all ranks do it after the
  // same step. `mesh` must outlive the engine.
  void enter_stage(const config::RunConfig& config, const Mesh& mesh);

  // Makes room for passes that need this much: what is larger than the arenas at hand replaces
  // them. Micro-batches of one run differ in what they need where layouts and masks follow the
  // documents. Between passes only; not collective. Returns whether something grew. Throws
  // Error(kExhausted).
  bool reserve(const PassMemory& memory);
  // Bytes of all arenas on the device once reserve(memory) has run.
  std::size_t device_bytes_with(const PassMemory& memory) const;
  // The most that passes have taken so far.
  PassMemory pass_memory() const;

  // One optimizer step over this rank's micro-batches. Collective over the world. Reads nothing
  // back.
  void train_step(std::span<const MicroBatch> micro_batches, double lr, const HostFlags& flags);
  StepResult read_step();
  // The next step's optimizer waits on the device for what `event` marks; it must live until then.
  void update_after(Event& event) { update_after_ = &event; }

  // Adds a micro-batch's loss to the evaluation sums. Collective over the context ranks.
  void evaluate(const MicroBatch& micro_batch);
  // The sums over all ranks, and back to zero. Collective over the world.
  EvalResult read_evaluation();
  // Each label's nll, NaN where none is scored, local order; added to the evaluation sums too.
  // Collective over the context ranks.
  std::vector<float> nll(const MicroBatch& micro_batch);
  // take(row, logits) for each of these local rows, in turn. Collective over the context ranks.
  void row_logits(const MicroBatch& micro_batch, std::span<const std::int64_t> rows,
                  const TakeRowLogits& take);

  ParameterStore& parameters() { return parameters_; }
  const Transformer& model() const { return model_; }
  AdamW& optimizer() { return *optimizer_; }
  Backend& backend() { return backend_; }
  DType compute() const { return compute_; }
  // Those on the device, and where activations are offloaded that in host memory, last.
  std::vector<const Arena*> arenas() const;
  const PassGraphs& graphs() const { return graphs_; }

 private:
  // (kNumSums) f64 on the device: what a step sums over ranks besides gradients.
  enum Sum : std::int64_t { kLoss, kValid, kPairs, kStop, kSaveFailed, kNumSums };
  Tensor sum(Sum which) const { return sums_.rows(which, 1); }

  // What the model runs a pass over this micro-batch with.
  StepContext context(const MicroBatch& micro_batch) const;
  // Tokens on their way to the device, from memory that stays until they are there.
  struct Upload {
    Buffer host;
    std::unique_ptr<Event> done;
  };
  TokenTensors upload(const MicroBatch& micro_batch);
  std::byte* upload_memory(std::size_t bytes);
  // Brings tensors to the host, in turn, and waits for them: the only place where a step waits.
  void read(std::initializer_list<std::pair<Tensor, void*>> values);
  // False where the device works at once on the host's memory, or not at all (dry).
  bool has_queue() const { return backend_.stream().native_handle() != nullptr; }
  // As a graph where train.cuda_graphs, the device and the pass allow it.
  void run_pass(const MicroBatch& micro_batch, const LossSums& losses);

  Backend& backend_;
  const Mesh* mesh_;
  Trace& trace_;
  DType compute_;
  RecomputePolicy policy_;
  std::int64_t token_tile_;
  PassGraphs graphs_;
  std::uint64_t seed_;
  bool deterministic_;
  Arena weights_, gradients_, optimizer_states_;
  std::unique_ptr<Arena> activations_, scratch_, batch_;  // empty between passes
  std::unique_ptr<HostStash> stash_;                      // with a policy that offloads
  std::unique_ptr<Attention> attention_;
  ParameterStore parameters_;
  Transformer model_;
  std::unique_ptr<AdamW> optimizer_;
  Tensor sums_;                               // (kNumSums) f64
  Tensor eval_sums_;                          // (2) f64: loss, valid
  std::unique_ptr<InvariantStep> invariant_;  // with parallel.invariant
  std::vector<Upload> uploads_;               // in turn
  std::size_t next_upload_ = 0;
  Buffer results_;  // pinned
  Event* update_after_ = nullptr;
};

// The mesh that a resolved configuration asks for. Collective over `world`.
Mesh make_mesh(const config::RunConfig& config, Communicator& world);

// parallel.attention_kernel.
AttentionKernel attention_kernel(const config::RunConfig& config);

// bf16 or fp32, from train.precision.
DType compute_dtype(const config::RunConfig& config);

}  // namespace farspan
