// What a token may look at inside its document, as data. A pattern gives, for a document of n
// tokens, rectangles of its score matrix (MaskTile); the plan (attention_plan.h) cuts them along
// any layout. Causality, windows and patterns read the index inside the document, never positions.
//
//   AttentionPattern p{.window = 4096, .sinks = 4};          // StreamingLLM, LM-Infinite's Lambda
//   for (const MaskTile& t : mask_tiles(p, /*length=*/n, /*kv_heads=*/8)) ...
//
// Distance below is (query index) - (key index).
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "config/run_config.pb.h"
#include "kernels/args.h"
#include "parallel/sequence_layout.h"

namespace farspan {

enum class SparseKind : std::uint8_t {
  kNone,
  kDilated,  // LongNet (Ding et al. 2023, eq. 2-7): see DilatedBranch
  kBigBird,  // Zaheer et al. 2020, section 2: blocks; global + window + random, causal
  kShifted,  // LongLoRA's S2 (Chen et al. 2023): groups, half of the heads shifted by half a group
};

// One branch of LongNet's mixture: the document is cut into segments; inside each, every
// `dilation`-th token attends causally to every `dilation`-th. KV head h starts at token
// h mod dilation (section 3.2). Branches are mixed by their softmax denominators (eq. 6-7), which
// is what accumulating all of them into one softmax state gives: a key in two branches counts
// twice.
struct DilatedBranch {
  std::int64_t segment = 0;  // tokens, a multiple of dilation
  std::int64_t dilation = 1;
  friend bool operator==(const DilatedBranch&, const DilatedBranch&) = default;
};

struct AttentionPattern {
  bool causal = true;       // false: both directions (no sinks, no sparse pattern)
  std::int64_t window = 0;  // 0: none; else visible iff distance < window (with causal), as in
                            // transformers' sliding_window: the token itself and window - 1 before
                            // it. Without causal: |distance| < window.
  std::int64_t sinks = 0;   // with a window: the document's first tokens stay visible (causally)
  SparseKind sparse = SparseKind::kNone;  // excludes window and sinks
  std::vector<DilatedBranch> branches;    // kDilated
  std::int64_t block = 64;                // kBigBird: tokens of a block
  std::int64_t window_blocks = 3;         // kBigBird: the query's own block and those before it
  std::int64_t global_blocks = 1;         // kBigBird: first blocks of the document, seen by all.
                                          // (Causal: they do not look ahead at everything.)
  std::int64_t random_blocks = 2;         // kBigBird: further earlier blocks, drawn per block
  std::uint64_t seed = 0;                 // kBigBird: of the draw (seed, block): no rank, no state
  std::int64_t group = 0;                 // kShifted: tokens of a group. The second half of the KV
                                          // heads has its borders half a group later ("unwrapped":
                                          // the first half group stands alone, nothing wraps round)
  friend bool operator==(const AttentionPattern&, const AttentionPattern&) = default;

  std::string description() const;  // "causal", "window 4096 + 4 sinks", "dilated 2048/1 + 4096/2"
  // Local rows must be ordered by index modulo this, so that slices have plain rows: the least
  // common multiple of the dilations, else 1. (SequenceLayout::refined.)
  std::int64_t row_stride() const;
};

inline constexpr std::int64_t kFarDistance = std::int64_t{1} << 40;

// A rectangle [q.begin, q.end) x [k.begin, k.end) of a document's score matrix, indices inside the
// document. Element (i, j) is visible iff min_distance <= i - j <= max_distance and, with step > 1,
// i and j are both = residue (mod step).
struct MaskTile {
  IndexRange q, k;
  std::int64_t min_distance = 0;
  std::int64_t max_distance = kFarDistance;
  std::int64_t step = 1, residue = 0;
  HeadRange kv_heads;
};

// The blocks before `query_block` that kBigBird draws for it beyond its window and the global ones,
// ascending: min(random_blocks, those that there are), distinct.
std::vector<std::int64_t> random_blocks_of(const AttentionPattern& pattern,
                                           std::int64_t query_block);

// All visible (query, key, head) triples of a document of `length` tokens, each in one tile (in
// several where a dilated mixture counts it more than once). Queries ascend; for one query, keys
// ascend, but for a dilated mixture's branches. CHECKs what validate() refuses.
std::vector<MaskTile> mask_tiles(const AttentionPattern& pattern, std::int64_t length,
                                 std::int64_t num_kv_heads);

// Visible keys summed over rows, mean over query heads: what a rank's share of work is weighed by.
// Every pattern has a closed form: no call depends on the length.
class RowArea {
 public:
  explicit RowArea(AttentionPattern pattern, std::int64_t num_kv_heads = 1);
  // Rows [begin, end) of a document of `length` tokens. Exact (below 2^53).
  double of_rows(std::int64_t begin, std::int64_t end, std::int64_t length) const;
  // Key j may be needed by rows up to j + reach() - 1 only (kFarDistance: by any later row). Sinks
  // are not counted: the document's first pattern().sinks keys may be needed by any later row.
  std::int64_t reach() const;
  const AttentionPattern& pattern() const { return pattern_; }

 private:
  double before(std::int64_t row, std::int64_t length) const;  // of_rows(0, row, length)

  AttentionPattern pattern_;
  std::int64_t num_kv_heads_;
};

// The distinct patterns of a model's layers, and which one each layer has. From sliding_window,
// attention_sinks, layer_types, sparse_attention and is_causal; the configuration is valid.
struct LayerPatterns {
  std::vector<AttentionPattern> patterns;  // in order of first use
  std::vector<int> of_layer;               // index into patterns, one per layer
};
LayerPatterns layer_patterns(const config::Model& model);

}  // namespace farspan
