// Readers as a resolved configuration describes them.
//
//   SampleReader train = open_training_data(config, TokenStore::Verify::kHash);
//   std::optional<EvaluationReader> held_out = open_validation_data(config, ...);
//
// Verifying hashes reads each file once: one rank per machine is enough, the others may pass kSize.
#pragma once

#include <optional>

#include "config/curriculum.h"
#include "data/sampler.h"

namespace farspan {

// data.train of every stage, with the first stage's weights; seed, data.documents, positions,
// model.vocab_size. Throws Error(kBadData) for a store that does not verify or does not fit the
// model's vocabulary, Error(kUsage) for a packing that is not built, and for a sampler of positions
// over a store that has its own.
SampleReader open_training_data(const config::RunConfig& config, TokenStore::Verify verify);

// The stores that the stages read, in order of first use. One that a stage names twice is two
// sources. What a reader of open_training_data() has for sources.
std::vector<std::string> training_stores(const std::vector<StagePlan>& stages);
// `start` with the mixture, documents and positions of `stage`. One that reads a single stage's own
// sources leaves the weights to the reader.
StageStart reading_as(StageStart start, const StagePlan& stage,
                      const std::vector<std::string>& stores);

// The sampler of a resolved configuration.
PositionOptions position_options(const config::RunConfig& config);

// data.validation, at its own positions or 0, 1, 2, ...; nullopt when the configuration names none.
std::optional<EvaluationReader> open_validation_data(const config::RunConfig& config,
                                                     TokenStore::Verify verify);

}  // namespace farspan
