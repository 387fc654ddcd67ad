// From the configuration that a checkpoint was made with to that of a run that only reads it:
// generate and eval. What training alone reads is left out; how ranks share the work is chosen
// anew.
//
//   InferenceConfig c = inference_config(manifest.config_yaml(), "run/checkpoints/step_00000050",
//                                        {"model.rope.scaling.type=yarn"}, world.size());
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "config/load.h"

namespace farspan {

struct InferenceConfig {
  config::RunConfig config;   // resolved for the ranks; parallel.attention and .layout are chosen
  config::RunConfig trained;  // as the checkpoint has it, in the stage it was made in
  std::vector<Issue> notes;   // worth saying though no error
};

// Keys, or sections, that `overrides` may change, for people: "device, device_memory, model.rope".
std::string inference_keys();

// `overrides` ("section.key=value") may change how positions and masks are computed, how ranks
// share the work, precision and device; not the shape of the weights, and nothing that only
// training reads. Throws ConfigError with every issue. `where` names the checkpoint; `stage_steps`
// are the steps done in each stage of its curriculum.
InferenceConfig inference_config(std::string_view saved_yaml, const std::string& where,
                                 std::span<const std::string> overrides, int num_ranks,
                                 const std::vector<std::int64_t>& stage_steps = {});

// The longest context that the weights were trained for, tokens: sequence lengths of the stages
// that have trained, and what position samplers and rotary scaling reached for.
std::int64_t trained_context(const config::RunConfig& trained);

}  // namespace farspan
