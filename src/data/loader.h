// Readers as a resolved configuration describes them.
//
//   SampleReader train = open_training_data(config, TokenStore::Verify::kHash);
//   std::optional<EvaluationReader> held_out = open_validation_data(config, ...);
//
// Verifying hashes reads each file once: one rank per machine is enough, the others may pass kSize.
#pragma once

#include <cstddef>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "config/curriculum.h"
#include "data/sampler.h"

namespace farspan {

// data.train of every stage, with the first stage's weights; seed, data.documents, positions,
// model.vocab_size. Throws Error(kBadData) for a store that does not verify or does not fit the
// model's vocabulary, Error(kUsage) for a packing that is not built, and for a sampler of positions
// over a store that has its own.
SampleReader open_training_data(const config::RunConfig& config, TokenStore::Verify verify);

// A source of training text.
struct TrainingStore {
  std::string path;             // as first spelled
  std::filesystem::path file;   // where that leads: a store spelled in two ways is one
  std::size_t first_stage = 0;  // that reads it
};
// The stores that the stages read, in order of first use, so that stages still to come change
// nothing for those before. One that a stage names twice is two sources. What a reader of
// open_training_data() has for sources.
std::vector<TrainingStore> training_stores(const std::vector<StagePlan>& stages);
// `start` with the mixture, documents and positions of `stage`. One that reads a single stage's own
// sources leaves the weights to the reader.
StageStart reading_as(StageStart start, const StagePlan& stage,
                      const std::vector<TrainingStore>& stores);

// The sampler of a resolved configuration.
PositionOptions position_options(const config::RunConfig& config);

// data.validation, at its own positions or 0, 1, 2, ...; nullopt when the configuration names none.
std::optional<EvaluationReader> open_validation_data(const config::RunConfig& config,
                                                     TokenStore::Verify verify);

}  // namespace farspan
