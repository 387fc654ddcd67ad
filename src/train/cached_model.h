// A model that remembers a document: each token is computed once, and later ones attend to its keys
// and values (parallel/kv_cache.h). What generation and long evaluation run on.
//
//   CachedModel cached(on_rank(engine), {.prompt = 4096, .tokens = 4096 + 128});
//   std::vector<float> logits = cached.logits_after(prompt);       // in chunks, or over the ranks
//   logits = cached.logits_after({&next, 1});
//
// One rank computes a prompt in chunks of options.chunk tokens; the result is that of one pass but
// for rounding. Several ranks compute it in one pass that they share out by their strategy and
// layout (parallel.attention); each keeps the keys and values of its tokens. Later tokens, and
// prompts too short to share, are computed by every rank alike, but for attention, which each does
// over its share. Memory comes from the rank's scratch arena for the object's lifetime.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "parallel/cached_attention.h"
#include "parallel/long_attention.h"
#include "train/forward_engine.h"

namespace farspan {

// What passes without gradients run on.
struct ModelOnRank {
  const config::RunConfig& config;
  const Transformer& model;
  Backend& backend;
  const Mesh& mesh;
  Arena& scratch;
  Trace& trace;
};
ModelOnRank on_rank(ForwardEngine& engine);

struct CachedModelOptions {
  std::int64_t prompt = 0;    // tokens of the first extend(); 0: several ranks share none of it
  std::int64_t tokens = 0;    // of the whole document
  std::int64_t chunk = 2048;  // most tokens of a pass on one rank
  LongAttentionOptions long_attention{};
};

// Throws Error(kUsage) where attention cannot reach so: a document over several ranks, positions
// that are not rope, a mask of the model's own. `config`: resolved.
void check_long_attention(const config::RunConfig& config, const LongAttentionOptions& options,
                          int context_ranks);
// Whether lm_infinite and dca can replace the attention of this model, on one rank.
bool takes_long_attention(const config::Model& model);

class CachedModel {
 public:
  // Throws Error(kUsage) for what cannot be: what check_long_attention refuses, more tokens than a
  // table of positions has. Data-parallel ranks, of which each has documents of its own, must have
  // no context ranks beside them.
  CachedModel(const ModelOnRank& on, const CachedModelOptions& options);

  // A pass over some of the document's tokens, in `order` (their indices).
  struct Pass {
    std::vector<std::int32_t> order;
    TokenTensors batch;  // without labels
    const StepContext& ctx;
  };
  using Compute = std::function<void(const Pass&)>;
  // The document's next tokens, pass by pass. `compute` runs the model once over each, as
  // Transformer::forward does. Collective over the context ranks. A prompt that the ranks share is
  // one pass over this rank's tokens; in other passes all ranks compute the same tokens.
  void extend(std::span<const std::int32_t> tokens, const Compute& compute);

  // f32 logits after the last of these tokens, the same on every rank. `tokens` is not empty.
  std::vector<float> logits_after(std::span<const std::int32_t> tokens);

  std::int64_t length() const { return length_; }

 private:
  struct Shared {  // how a prompt is spread over the ranks
    Sharder sharder;
    std::vector<std::int32_t> order;
    std::int64_t stride;
  };

  bool shares(std::int64_t prompt) const;
  void plan_prompt();
  KvCache::Sizes cache_sizes() const;
  void shared_pass(std::span<const std::int32_t> tokens, const Compute& compute);
  void alike_pass(std::span<const std::int32_t> tokens, const Compute& compute);
  void long_pass(std::span<const std::int32_t> tokens, const Compute& compute);
  int owner_of(std::int64_t token) const;
  StepContext context(std::span<const AttentionPlan> plans, const Attention& attention) const;
  Tensor put(std::span<const std::int32_t> values, std::string_view name) const;
  void run(std::span<const std::int32_t> tokens, std::vector<std::int32_t> order,
           const StepContext& ctx, const Compute& compute) const;

  ModelOnRank on_;
  CachedModelOptions options_;
  LayerPatterns patterns_;
  int num_ranks_;
  std::int64_t stride_ = 1;       // between tokens of neighbouring rows
  std::optional<Shared> shared_;  // until the prompt has been computed
  std::unique_ptr<Attention> strategy_;
  Arena::Scope memory_;
  std::optional<KvCache> cache_;
  std::optional<LongAttention> long_attention_;
  std::int64_t length_ = 0;
};

}  // namespace farspan
