// A micro-batch as one rank needs it: its own tokens, and the plans of attention. Made on the
// prefetch thread, off the step.
//
//   Sharder sharder(Sharding::from(config, mesh.place()));
//   MicroBatch mine = sharder(batch);
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "config/run_config.pb.h"
#include "data/batch.h"
#include "model/rotary.h"
#include "parallel/attention_plan.h"
#include "parallel/mesh.h"

namespace farspan {

// Tokens of a block of the invariant mode, counted from the start of each sequence: what is
// computed and summed as one piece, whatever the number of ranks.
inline constexpr std::int64_t kInvariantBlock = 128;

// How a run cuts its micro-batches: a function of the configuration and of the rank's place.
struct Sharding {
  LayoutKind layout = LayoutKind::kZigzag;
  ContextPlace place;
  LayerPatterns patterns;
  std::int64_t num_heads = 1, num_kv_heads = 1;
  bool gather = false;     // all-gather attention
  bool positions = false;  // the model has an ALiBi or xPos bias
  bool decays = false;     // xPos: positions may not go down inside a document
  // Where the model's frequencies depend on the documents' lengths.
  std::optional<RotaryArgs> rotary{};
  std::int64_t max_positions = 0;  // rows of a table of learned positions; 0: no such table
  std::int64_t block = 0;          // tokens of a block in invariant mode; 0: off

  // CHECKs that parallel.attention and parallel.layout are chosen (train/auto_sharding.h).
  static Sharding from(const config::RunConfig& config, const ContextPlace& place);
};

// Bytes that a pass over a micro-batch takes from the arenas that passes use; zeros: not asked for.
struct PassMemory {
  std::size_t activations = 0, scratch = 0, batch = 0;
  std::size_t host = 0;  // offloaded activations
};

struct MicroBatch {
  std::vector<std::int32_t> tokens, labels, positions;  // (T) local order
  // With Sharding::rotary: tables of the whole micro-batch's documents, the same on every rank, and
  // which of them each token reads. A document's length is its largest position + 1.
  std::vector<double> inv_freq;          // (K, D / 2)
  std::vector<std::int32_t> table_ids;   // (T) local order
  std::int64_t num_tables = 0;           // K
  std::vector<AttentionPlan> plans;      // one per distinct pattern of the model's layers
  std::vector<std::int64_t> row_blocks;  // invariant mode: StepContext::row_blocks
  double visible_pairs = 0;  // (query, key) pairs of the whole micro-batch over its context ranks,
                             // mean over query heads and layers
  PassMemory memory;
  // Micro-batches of one sharder with equal numbers have equal plans and row blocks; 0: not known.
  std::uint64_t plan_id = 0;
};

// The layout of a micro-batch over the places of the ring: a function of what all ranks know.
SequenceLayout make_layout(const Batch& batch, const Sharding& sharding);

// (query, key) pairs that the model's attention sees in these documents, mean over query heads and
// layers. `segments` as in data/batch.h.
double visible_pairs(std::span<const std::int32_t> segments, const LayerPatterns& patterns,
                     std::int64_t num_kv_heads);

// Cuts micro-batches for one rank: one permutation for tokens, labels and positions; the plans read
// index, segments and (for biases) positions. Batches with the same documents as the one before
// reuse its layout and plans.
class Sharder {
 public:
  explicit Sharder(Sharding sharding) : sharding_(std::move(sharding)) {}

  // Throws Error(kBadData) for positions that the model's bias is not defined for, or that are
  // beyond its table.
  MicroBatch operator()(const Batch& batch);
  // Whether the last batch was cut like the one before it, and needs no more memory.
  bool reused() const { return reused_; }

 private:
  bool same_documents(const Batch& batch) const;
  void plan(const Batch& batch);
  void add_tables(const Batch& batch, MicroBatch& out);

  Sharding sharding_;
  // Of the last batch: what its plans depend on, and what was made from it.
  std::int64_t sequence_length_ = 0;
  std::vector<std::int32_t> segments_, positions_;
  std::vector<IndexRange> ranges_;  // this rank's tokens
  MicroBatch made_;                 // without tokens
  std::uint64_t num_plans_ = 0;
  std::size_t most_frequencies_ = 0;  // of a batch since the last plan
  bool reused_ = false;
};

MicroBatch shard(const Batch& batch, const Sharding& sharding);

// Tokens without content, each sequence one document: the largest work that a micro-batch of this
// shape can need. For dry passes.
Batch blank_batch(std::int64_t sequences, std::int64_t sequence_length);

}  // namespace farspan
