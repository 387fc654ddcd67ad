// A micro-batch as one rank needs it: its own tokens, and the plan of attention. Made on the
// prefetch thread, off the step.
#pragma once

#include <cstdint>
#include <vector>

#include "data/batch.h"
#include "parallel/attention_plan.h"

namespace farspan {

struct MicroBatch {
  std::vector<std::int32_t> tokens, labels, positions;  // (T) local order
  AttentionPlan plan;
  double visible_pairs = 0;  // (query, key) pairs of the whole micro-batch, over its context ranks
};

// One permutation for tokens, labels and positions; the plan reads index and segments.
MicroBatch shard(const Batch& batch, const SequenceLayout& layout, int context_rank);

// Tokens without content, each sequence one document: the largest work and memory that a
// micro-batch of this shape can need. For dry passes.
Batch blank_batch(std::int64_t sequences, std::int64_t sequence_length);

}  // namespace farspan
