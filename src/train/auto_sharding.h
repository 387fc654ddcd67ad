// parallel.attention: auto and parallel.layout: auto become what the cost model
// (parallel/attention_cost.h) chooses for the run's own documents.
//
//   const std::string why = choose_sharding(config, data.first_batch());
//   if (!why.empty()) log.info("{}", why);
#pragma once

#include <string>
#include <vector>

#include "config/curriculum.h"
#include "data/batch.h"

namespace farspan {

bool sharding_is_automatic(const config::RunConfig& config);

// Sets parallel.attention, parallel.layout and parallel.ulysses where the first two are auto. Pure:
// the same on every rank, and whenever a run is started again. Returns the choice and its reason in
// one line; "" when nothing was free. Throws Error(kUsage) when nothing is possible.
std::string choose_sharding(config::RunConfig& config, const Batch& batch);

// Writes what was chosen for `stages` (plan_stages(config), each through choose_sharding) into
// `config`, so that a run of it is the same run. Stages of a window, and those that cycles repeat,
// share a place there: where they chose differently it stays auto, which chooses the same again.
void record_sharding(config::RunConfig& config, const std::vector<StagePlan>& stages);

}  // namespace farspan
