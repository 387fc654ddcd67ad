// A micro-batch as one rank needs it: its own tokens, and the plans of attention. Made on the
// prefetch thread, off the step.
#pragma once

#include <cstdint>
#include <vector>

#include "config/run_config.pb.h"
#include "data/batch.h"
#include "parallel/attention_plan.h"
#include "parallel/mesh.h"

namespace farspan {

// How a run cuts its micro-batches: a function of the configuration and of the rank's place.
struct Sharding {
  LayoutKind layout = LayoutKind::kZigzag;
  ContextPlace place;
  LayerPatterns patterns;
  std::int64_t num_heads = 1, num_kv_heads = 1;
  bool gather = false;     // all-gather attention
  bool positions = false;  // the model has an ALiBi or xPos bias
  std::int64_t block = 0;  // tokens of a block in invariant mode; 0: off

  static Sharding from(const config::RunConfig& config, const ContextPlace& place);
};

struct MicroBatch {
  std::vector<std::int32_t> tokens, labels, positions;  // (T) local order
  std::vector<AttentionPlan> plans;      // one per distinct pattern of the model's layers
  std::vector<std::int64_t> row_blocks;  // invariant mode: StepContext::row_blocks
  double visible_pairs = 0;  // (query, key) pairs of the whole micro-batch over its context ranks,
                             // mean over query heads and layers
};

// One permutation for tokens, labels and positions; the plans read index, segments and (for biases)
// positions.
MicroBatch shard(const Batch& batch, const Sharding& sharding);

// Tokens without content, each sequence one document: the largest work and memory that a
// micro-batch of this shape can need. For dry passes.
Batch blank_batch(std::int64_t sequences, std::int64_t sequence_length);

}  // namespace farspan
