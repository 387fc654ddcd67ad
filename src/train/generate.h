// Text from a model, one token at a time, by running the whole prefix again for each (no KV cache):
// right for a short sample at the end of a run.
//
//   std::vector<int32_t> ids = generate(config, engine.model(), backend, prompt, {.max_new_tokens =
//   128});
//
// Runs on one rank alone; the other ranks need not take part.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "config/run_config.pb.h"
#include "model/transformer.h"

namespace farspan {

struct GenerateOptions {
  std::int64_t max_new_tokens = 128;
  double temperature = 0.8;  // 0: the most likely token
  double top_p = 0.95;       // nucleus sampling (Holtzman et al. 2020); 1: all tokens
  std::uint64_t seed = 1;
  std::int32_t stop_token = -1;  // ends the text; -1: none
};

// The new tokens only. `prompt` must not be empty.
std::vector<std::int32_t> generate(const config::RunConfig& config, const Transformer& model,
                                   Backend& backend, std::span<const std::int32_t> prompt,
                                   const GenerateOptions& options);

// One draw from softmax(logits / temperature) cut to the smallest set of probability top_p;
// `uniform` in [0, 1).
std::int32_t sample_token(std::span<const float> logits, double temperature, double top_p,
                          double uniform);

}  // namespace farspan
