// A model loaded to be read, not trained: what generate and eval start from.
//
//   InferenceModel model("runs/quickstart", {"train.precision=fp32"}, options, world);
//   model.reserve(pass);                 // runs it on the dry backend: how much memory it takes
//   pass(model.engine());                // pass: void(ForwardEngine&), e.g. one scored micro-batch
//   Sharder sharder(Sharding::from(model.config(), model.mesh().place()));
//
// The model comes from a run's folder (its newest checkpoint that verifies) or a checkpoint's.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/log.h"
#include "data/tokenizer.h"
#include "train/device_transport.h"
#include "train/forward_engine.h"
#include "train/inference_config.h"
#include "train/memory.h"

namespace farspan {

struct InferenceOptions {
  int threads = 1;           // CPU threads of this rank
  int ranks_on_machine = 1;  // that share its memory
  int local_rank = 0;        // place among them: takes the GPU of this number, modulo those visible
  std::string host_id{};     // tells machines apart, as NCCL does
  bool quiet = false;        // console shows warnings and errors only
  // What makes a pass smaller, for the error where one does not fit: "use a shorter text".
  std::vector<std::string> smaller{"a shorter text"};
  bool ranks_share = true;  // more of them, each with memory of its own, help as well
};

class InferenceModel {
 public:
  using Pass = std::function<void(ForwardEngine&)>;

  // Collective over `world`, which must outlive the model; every rank loads all weights. Throws
  // Error(kUsage) for a path that is no run or checkpoint and for overrides that cannot be
  // (train/inference_config.h), Error(kBadData) where no checkpoint verifies, Error(kDoesNotFit).
  InferenceModel(const std::filesystem::path& path, std::span<const std::string> overrides,
                 const InferenceOptions& options, Communicator& world);
  ~InferenceModel();
  InferenceModel(const InferenceModel&) = delete;
  InferenceModel& operator=(const InferenceModel&) = delete;

  // Makes room for passes like this one, found by running it on a dry twin of the engine: it must
  // not act on what it reads, and only use the engine's own mesh. Between passes; not collective.
  // Throws Error(kDoesNotFit), Error(kExhausted).
  void reserve(const Pass& pass);
  ForwardEngine& engine() { return *engine_; }
  // From the next pass on frequencies are scaled so; weights stay. `scaling` is resolved and valid
  // for the model, which is one of rotary positions. Between passes, the same on all ranks.
  void rescale(const config::RopeScaling& scaling);

  const config::RunConfig& config() const { return config_.config; }
  const config::RunConfig& trained() const { return config_.trained; }
  // Tokens that the weights were trained for (inference_config.h).
  std::int64_t trained_context() const { return farspan::trained_context(config_.trained); }
  const std::vector<Issue>& notes() const { return config_.notes; }
  const std::filesystem::path& checkpoint() const { return checkpoint_; }
  std::int64_t step() const { return step_; }
  std::int64_t parameters() const { return engine_->parameters().num_elements(); }
  // Of the training data; name "none" where it cannot be told (the data are gone).
  const TokenizerInfo& tokenizer() const { return tokenizer_; }

  Communicator& world() const { return world_; }  // of the host's tensors
  const Mesh& mesh() const { return *mesh_; }     // of the device's
  Backend& backend() const { return *backend_; }
  Trace& trace() { return trace_; }
  Log& log() { return log_; }

 private:
  struct DryTwin;

  void make_device();
  void allocate();
  void check_room(std::size_t scratch_bytes) const;
  std::string advice(bool of_machine) const;

  InferenceOptions options_;
  Communicator& world_;
  Log log_;
  std::filesystem::path checkpoint_;
  std::int64_t step_ = 0;
  InferenceConfig config_;
  TokenizerInfo tokenizer_;
  std::unique_ptr<Backend> backend_;
  Trace trace_;
  DeviceTransport transport_;
  std::optional<Mesh> mesh_;
  DeviceLimit limit_;
  std::unique_ptr<DryTwin> twin_;
  std::unique_ptr<ForwardEngine> engine_;
};

// The tokenizer of the model's data. Throws Error(kUsage) where this build does not have it.
std::unique_ptr<Tokenizer> tokenizer_of(const InferenceModel& model);

// The checkpoint that `path` means: a run's folder, its folder of checkpoints, or a step's. Rank 0
// looks and verifies the hashes; the others hear which step. Collective.
std::filesystem::path find_checkpoint(const std::filesystem::path& path, Log& log,
                                      Communicator& world);

}  // namespace farspan
