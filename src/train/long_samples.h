// Long samples of held-out text, and how well a model predicts them: what a search of a longer
// context minimises.
//
//   const std::vector<Window> samples = draw_long_samples(reader, {.length = 131072, .count = 5});
//   double nats = long_samples_nll(*scoring_model(model), reader, samples, 131072);
#pragma once

#include <cstdint>
#include <vector>

#include "data/sampler.h"
#include "train/scoring.h"

namespace farspan {

struct LongSamples {
  std::int64_t length = 0;  // tokens that each shows, all of one document
  std::int64_t count = 5;
  std::int64_t scored = 0;  // what follows the last so many of them is predicted; 0: all
  std::uint64_t seed = 1;
};

// Disjoint windows of whole length, drawn from all that the documents hold, in stored order; all of
// them where there are fewer than `count`. Throws Error(kBadData) where no document is that long,
// or where the store's own positions or segments say how far documents reach.
std::vector<EvaluationReader::Window> draw_long_samples(const EvaluationReader& reader,
                                                        const LongSamples& samples);

// Nats per scored token, summed in one order on any number of ranks. Collective over all ranks; the
// same on each. Throws Error(kBadData) where nothing is scored.
double long_samples_nll(ScoringModel& model, const EvaluationReader& reader,
                        const std::vector<EvaluationReader::Window>& samples, std::int64_t length);

}  // namespace farspan
