// Teacher-forced scores: how likely a model finds tokens of given texts, and whether it would have
// chosen them. Rows are shared out over data ranks and each over its context ranks, as batches are.
//
//   std::vector<double> nll(n);
//   score_nll(model, rows, [&](std::int64_t row, std::int64_t token, double value) {
//     nll[index_of(row, token)] = value;      // on the one rank that holds the token
//   });
//   sum_over_ranks(model, nll);               // now on every rank
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "data/batch.h"
#include "train/engine.h"
#include "train/inference_model.h"

namespace farspan {

// What scores are computed on: a model that was loaded, or one that is being trained.
class ScoringModel {
 public:
  // Some rows of a micro-batch, ascending, whose logits are asked for; or none of them, but each
  // label's nll.
  struct Pass {
    const MicroBatch& micro;
    std::span<const std::int64_t> documents;  // their lengths, over all context ranks
    std::span<const std::int64_t> rows;
    bool nll = false;
  };

  virtual ~ScoringModel() = default;
  virtual const config::RunConfig& config() const = 0;  // resolved, sharding chosen
  virtual const Mesh& mesh() const = 0;
  virtual Communicator& hosts() const = 0;       // all ranks, for tensors of the host
  virtual std::int64_t pass_tokens() const = 0;  // of a pass over short rows, about
  // Before each pass. Not collective. Throws Error(kBadData) for a text that cannot be scored.
  virtual void check(const Pass&) const {}
  // Makes room. Not collective. Throws Error(kExhausted), Error(kDoesNotFit).
  virtual void reserve(const Pass& pass) = 0;
  // nats of each label in the micro-batch, NaN where none is scored. Collective over context ranks.
  virtual std::vector<float> nll(const Pass& pass) = 0;
  // `take` is called for each of pass.rows, in their order. Collective over the context ranks.
  virtual void logits(const Pass& pass, const TakeRowLogits& take) = 0;
  // After the last pass. Collective over all ranks.
  virtual void finish() {}
};

std::unique_ptr<ScoringModel> scoring_model(InferenceModel& model);

// The model of a run under way. `reserve` makes room for what a pass takes (TrainingRun::reserve).
// All that is referred to must outlive the result.
struct LiveModel {
  const config::RunConfig& config;  // of the stage at hand
  Engine& engine;
  const Mesh& mesh;
  Communicator& hosts;
  const ArenaSizes& sizes;  // those of the dry run
  std::function<void(const PassMemory&)> reserve;
};
std::unique_ptr<ScoringModel> scoring_model(const LiveModel& model);

// Rows of equal length, of any number of documents each.
struct ScoredRows {
  std::int64_t count = 0;
  std::int64_t length = 0;
  // Rows first .. first + n - 1, labels -100 where nothing is scored; rows from `count` on are of
  // the same shape and are not scored. A pure function, the same on every rank.
  std::function<Batch(std::int64_t first, std::int64_t n)> make;
  // Each in a pass of its own, whose shape and so whose rounding is the same on any data ranks.
  bool one_by_one = false;
};

// Calls visit(row, token, nll) for each scored label, on one rank of all; `token` is the place in
// the row that the label is predicted at. Collective over all ranks. Throws on all ranks what
// fails on one.
void score_nll(ScoringModel& model, const ScoredRows& rows,
               const std::function<void(std::int64_t, std::int64_t, double)>& visit);

// The model's say on one label.
struct LabelScore {
  std::int64_t row = 0, token = 0;
  std::int32_t label = 0, best = 0;  // best: the likeliest, of equals the lowest id
  double nll = 0;                    // of the label, nats, from f32 logits summed in double
  bool hit() const { return best == label; }
};
// The same with logits of the scored labels only, for rows in which few are scored.
void score_labels(ScoringModel& model, const ScoredRows& rows,
                  const std::function<void(const LabelScore&)>& visit);

// Each rank's numbers summed, on every rank. Collective over all ranks.
void sum_over_ranks(ScoringModel& model, std::vector<double>& values);

}  // namespace farspan
