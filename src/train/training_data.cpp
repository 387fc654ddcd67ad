#include "train/training_data.h"

#include <algorithm>

namespace farspan {
namespace {

constexpr int kPrefetchDepth = 2;  // steps made ahead

}  // namespace

TrainingData::TrainingData(const config::RunConfig& config)
    : sequence_length_(config.train().sequence_length()),
      micro_batch_(config.train().micro_batch()),
      sequences_per_step_(config.train().batch_tokens() / config.train().sequence_length()),
      steps_(config.train().steps()),
      evaluation_tokens_(config.evaluation().tokens()),
      data_size_(static_cast<int>(config.parallel().data())),
      reader_(open_training_data(config, TokenStore::Verify::kHash)),
      stage_(reader_.first_stage()),
      first_store_(reader_.sources().front().store),
      fingerprint_(reader_.fingerprint()),
      validation_(open_validation_data(config, TokenStore::Verify::kHash)) {}

void TrainingData::cut_for(const config::RunConfig& config, const Mesh& mesh,
                           const ArenaSizes& sizes) {
  const auto cutter = [&] {
    return Cutter{.sharder = Sharder(Sharding::from(config, mesh.place())),
                  .probe = MemoryProbe(config, mesh.world().rank(), mesh.world().size(), sizes)};
  };
  data_rank_ = mesh.data_rank();
  train_cutter_.emplace(cutter());
  evaluation_cutter_.emplace(cutter());
}

void TrainingData::start(std::int64_t step) {
  prefetch_.emplace([this](std::int64_t s) { return make_step(s); }, step, kPrefetchDepth, steps_);
}

std::vector<MicroBatch> TrainingData::next() { return prefetch_->next(); }

IndexRange TrainingData::samples_of(std::int64_t step) const {
  return {step * sequences_per_step_, (step + 1) * sequences_per_step_};
}

Batch TrainingData::batch_of(std::int64_t step, std::int64_t accumulation, int data_rank) {
  const std::int64_t first = first_sample_of({.step_first_sample = samples_of(step).begin,
                                              .accumulation = accumulation,
                                              .data_rank = data_rank,
                                              .data_ranks = data_size_,
                                              .micro_batch = micro_batch_});
  return reader_.make_batch(first, micro_batch_, sequence_length_, stage_);
}

std::vector<MicroBatch> TrainingData::make_step(std::int64_t step) {
  std::vector<MicroBatch> out;
  const std::int64_t micro_batches = sequences_per_step_ / (micro_batch_ * data_size_);
  for (std::int64_t j = 0; j < micro_batches; ++j)
    out.push_back((*train_cutter_)(batch_of(step, j, data_rank_), &MemoryProbe::train));
  return out;
}

std::int64_t TrainingData::num_evaluation_batches() const {
  const std::int64_t samples = validation_->num_samples(sequence_length_, evaluation_tokens_);
  const std::int64_t per_round = micro_batch_ * data_size_;
  return (samples + per_round - 1) / per_round;
}

MicroBatch TrainingData::evaluation_batch(std::int64_t index) {
  const std::int64_t first = (index * data_size_ + data_rank_) * micro_batch_;
  return (*evaluation_cutter_)(
      validation_->make_batch(first, micro_batch_, sequence_length_, evaluation_tokens_),
      &MemoryProbe::evaluate);
}

const TokenizerInfo& TrainingData::tokenizer() const { return first_store_->info().tokenizer; }

std::vector<std::int32_t> TrainingData::prompt(std::int64_t tokens) const {
  const TokenStore& store = validation_ ? validation_->store() : *first_store_;
  const auto document = static_cast<std::int64_t>(store.doc_offsets()[1]);
  std::vector<std::int32_t> out(static_cast<std::size_t>(std::min(tokens, document)));
  store.read_tokens(0, out);
  return out;
}

}  // namespace farspan
