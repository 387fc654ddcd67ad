#include "train/training_data.h"

#include <algorithm>

namespace farspan {
namespace {

constexpr int kPrefetchDepth = 2;  // steps made ahead

}  // namespace

TrainingData::TrainingData(const config::RunConfig& config, std::vector<StagePlan> stages)
    : evaluation_tokens_(config.evaluation().tokens()),
      stages_(std::move(stages)),
      stores_(training_stores(stages_)),
      reader_(open_training_data(config, TokenStore::Verify::kHash)),
      first_store_(reader_.sources().front().store),
      validation_(open_validation_data(config, TokenStore::Verify::kHash)) {
  find_starts();
}

std::int64_t TrainingData::sequences_per_step(std::size_t stage) const {
  const config::Train& train = stages_[stage].config.train();
  return train.batch_tokens() / train.sequence_length();
}

// Each stage goes on where the one before ends in the text.
void TrainingData::find_starts() {
  starts_ = {reading_as(reader_.first_stage(), stages_.front(), stores_)};
  for (std::size_t i = 0; i + 1 < stages_.size(); ++i)
    starts_.push_back(
        reading_as(reader_.next_stage(starts_[i], stages_[i].steps * sequences_per_step(i),
                                      stages_[i].config.train().sequence_length()),
                   stages_[i + 1], stores_));
}

void TrainingData::cut_for(std::vector<StagePlan> stages, std::vector<const Mesh*> meshes,
                           const ArenaSizes& sizes) {
  FARSPAN_CHECK(stages.size() == stages_.size() && meshes.size() == stages.size());
  stages_ = std::move(stages);
  meshes_ = std::move(meshes);
  kinds_ = distinct_stages(stages_).of_stage;
  sizes_ = sizes;
  enter_stage(0);
}

TrainingData::Cutter TrainingData::cutter(const config::RunConfig& config, const Mesh& mesh) const {
  return {.sharder = Sharder(Sharding::from(config, mesh.place())),
          .probe = MemoryProbe(config, mesh.world().rank(), mesh.world().size(), sizes_)};
}

void TrainingData::enter_stage(std::size_t stage) {
  evaluate_as(stages_[stage].config, *meshes_[stage], stages_[stage].window);
}

void TrainingData::evaluate_as(const config::RunConfig& config, const Mesh& mesh,
                               std::int64_t window) {
  evaluation_window_ = window;
  const bool alike = evaluation_mesh_ == &mesh &&
                     evaluation_config_.SerializeAsString() == config.SerializeAsString();
  if (alike) return;
  evaluation_config_ = config;
  evaluation_mesh_ = &mesh;
  evaluation_cutter_.emplace(cutter(config, mesh));
}

void TrainingData::end_stage(std::size_t stage, std::int64_t steps) {
  prefetch_.reset();  // its thread reads the stages
  farspan::end_stage(stages_, stage, steps);
  find_starts();
}

void TrainingData::start(std::int64_t step) {
  prefetch_.emplace([this](std::int64_t s) { return make_step(s); }, step, kPrefetchDepth,
                    stages_.back().end());
}

std::vector<MicroBatch> TrainingData::next() { return prefetch_->next(); }

IndexRange TrainingData::samples_of(std::int64_t step) const {
  const std::size_t stage = stage_at(stages_, step);
  const std::int64_t count = sequences_per_step(stage);
  const std::int64_t first =
      starts_[stage].first_sample + (step - stages_[stage].first_step) * count;
  return {first, first + count};
}

std::string TrainingData::fingerprint(std::size_t trained) const {
  const auto count = std::count_if(stores_.begin(), stores_.end(), [&](const TrainingStore& store) {
    return store.first_stage < trained;
  });
  return reader_.fingerprint(static_cast<std::size_t>(count));
}

std::int64_t TrainingData::skipped_tokens(std::int64_t step) const {
  std::int64_t skipped = 0;
  for (std::size_t i = 0; i < stages_.size(); ++i) {
    const std::int64_t length = stages_[i].config.train().sequence_length();
    const std::int64_t steps =
        std::clamp(step - stages_[i].first_step, std::int64_t{0}, stages_[i].steps);
    skipped += steps * sequences_per_step(i) * (reader_.stream_tokens(length, starts_[i]) - length);
  }
  return skipped;
}

Batch TrainingData::batch_of(std::int64_t step, std::int64_t accumulation, int data_rank) {
  const std::size_t stage = stage_at(stages_, step);
  const config::RunConfig& config = stages_[stage].config;
  const std::int64_t rows = config.train().micro_batch();
  const std::int64_t first = first_sample_of({.step_first_sample = samples_of(step).begin,
                                              .accumulation = accumulation,
                                              .data_rank = data_rank,
                                              .data_ranks = config.parallel().data(),
                                              .micro_batch = rows});
  Batch batch = reader_.make_batch(first, rows, config.train().sequence_length(), starts_[stage]);
  if (stages_[stage].window > 0) cut_segments(batch, stages_[stage].window);
  return batch;
}

std::vector<MicroBatch> TrainingData::make_step(std::int64_t step) {
  const std::size_t stage = stage_at(stages_, step);
  if (!train_cutter_ || train_kind_ != kinds_[stage])
    train_cutter_.emplace(cutter(stages_[stage].config, *meshes_[stage]));
  train_kind_ = kinds_[stage];
  const config::RunConfig& config = stages_[stage].config;
  const std::int64_t micro_batches =
      sequences_per_step(stage) / (config.train().micro_batch() * config.parallel().data());
  std::vector<MicroBatch> out;
  for (std::int64_t j = 0; j < micro_batches; ++j)
    out.push_back(
        (*train_cutter_)(batch_of(step, j, meshes_[stage]->data_rank()), &MemoryProbe::train));
  return out;
}

std::int64_t TrainingData::num_evaluation_batches() const {
  const config::Train& train = evaluation_config_.train();
  const std::int64_t samples =
      validation_->num_samples(train.sequence_length(), evaluation_tokens_);
  const std::int64_t per_round = train.micro_batch() * evaluation_config_.parallel().data();
  return (samples + per_round - 1) / per_round;
}

MicroBatch TrainingData::evaluation_batch(std::int64_t index) {
  const config::Train& train = evaluation_config_.train();
  const std::int64_t rows = train.micro_batch();
  const std::int64_t first =
      (index * evaluation_config_.parallel().data() + evaluation_mesh_->data_rank()) * rows;
  Batch batch = validation_->make_batch(first, rows, train.sequence_length(), evaluation_tokens_);
  if (evaluation_window_ > 0) cut_segments(batch, evaluation_window_);
  return (*evaluation_cutter_)(batch, &MemoryProbe::evaluate);
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
