// Stages of a curriculum while a configuration is resolved and checked. Internal to resolve() and
// validate(); everyone else reads config/curriculum.h.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "config/curriculum.h"
#include "config/rules.h"

namespace farspan {

// Fills what is implied in a configuration without stages.
void resolve_single(LoadedConfig& loaded, std::int64_t ranks);
// The same with stages: what each implies is written into it (validate.h lists the rules).
void resolve_stages(LoadedConfig& loaded, std::int64_t ranks);

// Stage `i` as a configuration of its own, with the places its keys were given at.
LoadedConfig stage_of(const LoadedConfig& loaded, int i);
// "parallel.data" -> "curriculum.stages[2].parallel.data"; "" for what a stage cannot say.
std::string stage_key(int i, std::string_view key);

// Steps of a budget in tokens, rounded up.
std::int64_t steps_of(std::int64_t tokens, std::int64_t batch_tokens);

// Refuses what this version lacks, in keys that begin with `section`.
void check_built(Rules& rules, std::string_view section = "");

// Every issue of a resolved configuration with stages.
std::vector<Issue> validate_stages(const LoadedConfig& loaded, const ValidateOptions& options);
// Every issue of one without.
std::vector<Issue> validate_single(const LoadedConfig& loaded, const ValidateOptions& options);

}  // namespace farspan
