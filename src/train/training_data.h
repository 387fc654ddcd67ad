// Batches of a run, cut for this rank: training steps from a prefetch thread, evaluation in order.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "data/loader.h"
#include "data/prefetch.h"
#include "parallel/mesh.h"
#include "train/micro_batch.h"

namespace farspan {

class TrainingData {
 public:
  // Opens and verifies the stores that `config` names. Throws Error(kBadData).
  TrainingData(const config::RunConfig& config, const Mesh& mesh);

  // Starts prefetching at optimizer step `step` (0 is the first).
  void start(std::int64_t step);
  // This rank's micro-batches of the next step.
  std::vector<MicroBatch> next();
  // Global sample numbers [first, first + count) of optimizer step `step`.
  IndexRange samples_of(std::int64_t step) const;

  bool has_validation() const { return validation_.has_value(); }
  // Micro-batches of one evaluation: the same number on every rank.
  std::int64_t num_evaluation_batches() const;
  MicroBatch evaluation_batch(std::int64_t index) const;

  std::string fingerprint() const { return fingerprint_; }
  const TokenizerInfo& tokenizer() const;
  // The first tokens of the held-out text, or of the training text: a prompt.
  std::vector<std::int32_t> prompt(std::int64_t tokens) const;

 private:
  std::vector<MicroBatch> make_step(std::int64_t step);

  std::int64_t sequence_length_, micro_batch_, sequences_per_step_, steps_, evaluation_tokens_;
  int data_rank_, data_size_;
  Sharding sharding_;
  SampleReader reader_;  // used by the prefetch thread only, once it runs
  StageStart stage_;
  std::shared_ptr<const TokenStore> first_store_;
  std::string fingerprint_;
  std::optional<EvaluationReader> validation_;
  std::optional<Prefetcher<std::vector<MicroBatch>>> prefetch_;
};

}  // namespace farspan
