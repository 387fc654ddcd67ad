// Batches of a run, cut for this rank: training steps from a prefetch thread, evaluation in order.
//
//   TrainingData data(config, plan_stages(config));
//   choose_sharding(stage_config, data.first_batch(stage));      // may need to see documents
//   data.cut_for(stages, meshes, sizes);
//   data.start(step);
//   std::vector<MicroBatch> mine = data.next();
//   data.enter_stage(1);                               // evaluation as this stage has it
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "data/loader.h"
#include "data/prefetch.h"
#include "parallel/mesh.h"
#include "train/dry_run.h"
#include "train/micro_batch.h"

namespace farspan {

class TrainingData {
 public:
  // Opens and verifies the stores that `config` names. Throws Error(kBadData).
  TrainingData(const config::RunConfig& config, std::vector<StagePlan> stages);

  // The first micro-batch of a stage: the same on every rank, whatever the step the run starts at.
  Batch first_batch(std::size_t stage) { return batch_of(stages_[stage].first_step, 0, 0); }
  // Micro-batches for this rank's place, with the memory that they need. `stages` as before, with
  // their layouts chosen; a mesh for each, which must outlive this object. Enters stage 0.
  void cut_for(std::vector<StagePlan> stages, std::vector<const Mesh*> meshes,
               const ArenaSizes& sizes);

  // Starts prefetching at optimizer step `step` (0 is the first).
  void start(std::int64_t step);
  // This rank's micro-batches of the next step, cut for the stage that the step is in.
  std::vector<MicroBatch> next();
  // Evaluation batches from here on are as long as this stage's, on its mesh.
  void enter_stage(std::size_t stage);
  // Evaluation batches from here on are as `config` has them, on `mesh`.
  void evaluate_as(const config::RunConfig& config, const Mesh& mesh, std::int64_t window = 0);
  // A stage ends after `steps` steps, fewer than planned. What was made ahead is forgotten: start()
  // goes on.
  void end_stage(std::size_t stage, std::int64_t steps);
  // Where a stage begins in the data.
  const StageStart& stage_start(std::size_t stage) const { return starts_[stage]; }
  // Global sample numbers [first, first + count) of optimizer step `step`.
  IndexRange samples_of(std::int64_t step) const;

  // Tokens of text that the steps before `step` pass over on purpose (positions.source_window).
  std::int64_t skipped_tokens(std::int64_t step) const;

  bool has_validation() const { return validation_.has_value(); }
  const EvaluationReader& validation() const { return *validation_; }
  // Micro-batches of one evaluation: the same number on every rank.
  std::int64_t num_evaluation_batches() const;
  MicroBatch evaluation_batch(std::int64_t index);

  // data_fingerprint of what the first `trained` stages read: those after them may change.
  std::string fingerprint(std::size_t trained) const;
  const TokenizerInfo& tokenizer() const;
  // The first tokens of the held-out text, or of the training text: a prompt.
  std::vector<std::int32_t> prompt(std::int64_t tokens) const;

 private:
  // Cuts batches for this rank and asks what passes over them need.
  struct Cutter {
    Sharder sharder;
    MemoryProbe probe;
    PassMemory memory{};

    template <typename Ask>
    MicroBatch operator()(const Batch& batch, Ask ask) {
      MicroBatch micro = sharder(batch);
      if (!sharder.reused()) memory = (probe.*ask)(micro);
      micro.memory = memory;
      return micro;
    }
  };

  Batch batch_of(std::int64_t step, std::int64_t accumulation, int data_rank);
  std::vector<MicroBatch> make_step(std::int64_t step);
  void find_starts();
  std::int64_t sequences_per_step(std::size_t stage) const;
  Cutter cutter(const config::RunConfig& config, const Mesh& mesh) const;

  std::int64_t evaluation_tokens_;
  std::vector<StagePlan> stages_;
  std::vector<TrainingStore> stores_;
  std::vector<const Mesh*> meshes_;
  std::vector<std::size_t> kinds_;  // stages with equal numbers are cut alike
  ArenaSizes sizes_{};
  std::optional<Cutter> train_cutter_;  // used, like the reader, by the prefetch thread only,
  std::size_t train_kind_ = 0;          // once it runs
  std::optional<Cutter> evaluation_cutter_;
  config::RunConfig evaluation_config_;  // of the cutter
  const Mesh* evaluation_mesh_ = nullptr;
  std::int64_t evaluation_window_ = 0;
  SampleReader reader_;
  std::vector<StageStart> starts_;
  std::shared_ptr<const TokenStore> first_store_;
  std::optional<EvaluationReader> validation_;
  std::optional<Prefetcher<std::vector<MicroBatch>>> prefetch_;
};

}  // namespace farspan
