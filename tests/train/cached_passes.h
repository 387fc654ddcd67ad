// Logits of a document's last tokens from a model that keeps keys and values.
#pragma once

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "train/cached_model.h"
#include "train/inference_model.h"

namespace farspan::testing {

using Overrides = std::vector<std::string>;
using Rows = std::vector<std::vector<float>>;  // logits

inline std::vector<std::int32_t> random_tokens(std::int64_t count) {
  std::mt19937_64 rng(11);
  std::vector<std::int32_t> out;
  for (std::int64_t i = 0; i < count; ++i) out.push_back(static_cast<std::int32_t>(rng() % 40));
  return out;
}

// Logits after the first `first` + 1 tokens, as one prompt, and after each later one.
inline Rows cached_passes(InferenceModel& model, const std::vector<std::int32_t>& tokens,
                          std::int64_t first, std::int64_t chunk,
                          const LongAttentionOptions& long_attention = {}) {
  Rows out;
  const std::span<const std::int32_t> all(tokens);
  const auto prompt = static_cast<std::size_t>(first + 1);
  const auto pass = [&](ForwardEngine& engine) {
    out.clear();
    CachedModel cached(on_rank(engine), {.prompt = first + 1,
                                         .tokens = static_cast<std::int64_t>(tokens.size()),
                                         .chunk = chunk,
                                         .long_attention = long_attention});
    out.push_back(cached.logits_after(all.first(prompt)));
    for (std::size_t i = prompt; i < tokens.size(); ++i)
      out.push_back(cached.logits_after(all.subspan(i, 1)));
  };
  model.reserve(pass);
  pass(model.engine());
  return out;
}

// Relative to the largest logit.
inline double distance(const Rows& a, const Rows& b) {
  EXPECT_EQ(a.size(), b.size());
  double most = 0, scale = 0;
  for (std::size_t r = 0; r < a.size(); ++r)
    for (std::size_t i = 0; i < a[r].size(); ++i) {
      most = std::max(most, std::abs(double{a[r][i]} - double{b[r][i]}));
      scale = std::max(scale, std::abs(double{b[r][i]}));
    }
  return most / scale;
}

}  // namespace farspan::testing
