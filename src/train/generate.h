// Text from a model, one token at a time, over kept keys and values (train/cached_model.h).
//
//   Generated g = generate(inference_model, prompt, {.max_new_tokens = 128}, [&](auto token) {
//     show(token);
//     return true;      // false: that was enough
//   });
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "train/cached_model.h"
#include "train/inference_model.h"

namespace farspan {

struct GenerateOptions {
  std::int64_t max_new_tokens = 128;
  double temperature = 0.8;  // 0: the most likely token
  double top_p = 0.95;       // nucleus sampling (Holtzman et al. 2020); 1: all tokens
  std::uint64_t seed = 1;
  std::int32_t stop_token = -1;  // ends the text; -1: none
  std::int64_t chunk = 2048;     // most tokens of the prompt in one pass, on one rank
  LongAttentionOptions long_attention{};
};

struct Generated {
  std::vector<std::int32_t> tokens;  // the new ones, without the stop token
  double seconds_prefill = 0;        // the prompt, up to its logits
  double seconds_decode = 0;         // the new tokens
};

// Called with each new token as it comes; whether to go on.
using OnToken = std::function<bool(std::int32_t)>;

// Collective over the model's ranks: all get the same tokens; rank 0 draws them and calls
// `on_token`. `prompt` must not be empty. Throws Error(kUsage) for a token id outside the
// vocabulary and what CachedModel refuses, Error(kDoesNotFit), Error(kExhausted).
Generated generate(InferenceModel& model, std::span<const std::int32_t> prompt,
                   const GenerateOptions& options, const OnToken& on_token = {});

// The same on one rank alone, with a model that is being trained: the other ranks need not take
// part.
Generated generate(const config::RunConfig& config, const Transformer& model, Backend& backend,
                   std::span<const std::int32_t> prompt, const GenerateOptions& options);

// One draw from softmax(logits / temperature) cut to the smallest set of probability top_p;
// `uniform` in [0, 1).
std::int32_t sample_token(std::span<const float> logits, double temperature, double top_p,
                          double uniform);

}  // namespace farspan
