// Batches of a run, cut for this rank: training steps from a prefetch thread, evaluation in order.
//
//   TrainingData data(config);
//   choose_sharding(config, data.first_batch());      // may need to see documents
//   data.cut_for(config, mesh, dry_run(...).sizes);
//   data.start(step);
//   std::vector<MicroBatch> mine = data.next();
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
  explicit TrainingData(const config::RunConfig& config);

  // The first micro-batch of the run: the same on every rank, whatever the step it starts at.
  Batch first_batch() { return batch_of(0, 0, 0); }
  // Micro-batches for this rank's place, with the memory that they need.
  void cut_for(const config::RunConfig& config, const Mesh& mesh, const ArenaSizes& sizes);

  // Starts prefetching at optimizer step `step` (0 is the first).
  void start(std::int64_t step);
  // This rank's micro-batches of the next step.
  std::vector<MicroBatch> next();
  // Global sample numbers [first, first + count) of optimizer step `step`.
  IndexRange samples_of(std::int64_t step) const;

  bool has_validation() const { return validation_.has_value(); }
  // Micro-batches of one evaluation: the same number on every rank.
  std::int64_t num_evaluation_batches() const;
  MicroBatch evaluation_batch(std::int64_t index);

  std::string fingerprint() const { return fingerprint_; }
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

  std::int64_t sequence_length_, micro_batch_, sequences_per_step_, steps_, evaluation_tokens_;
  int data_rank_ = 0, data_size_;
  std::optional<Cutter> train_cutter_;  // used, like the reader, by the prefetch thread only,
                                        // once it runs
  std::optional<Cutter> evaluation_cutter_;
  SampleReader reader_;
  StageStart stage_;
  std::shared_ptr<const TokenStore> first_store_;
  std::string fingerprint_;
  std::optional<EvaluationReader> validation_;
  std::optional<Prefetcher<std::vector<MicroBatch>>> prefetch_;
};

}  // namespace farspan
