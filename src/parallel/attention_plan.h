// The mask under a sharding as lists of slices: who multiplies what, and which rows travel.
//
// A pure function of (segments, positions, pattern, layout, rank): every rank computes its plan
// without communication and they agree. "Rank" here is a place in the ring: with Ulysses inside,
// the U ranks of a group hold one place together and share its plan.
//
// Ring: keys and values owned by rank o visit rank o + h at hop h. A row travels only as far as
// some rank still needs it; what a block has lost on the way is squeezed out, so slices of hop h
// count rows of the squeezed block. A sliding window becomes a halo exchange by itself.
// All-gather: each rank is sent exactly the rows that its queries see (Gather).
//
//   AttentionPlan plan = plan_attention({.segments = batch.segments, .layout = layout, ...}, rank);
//   for (const AttentionPlan::Hop& hop : plan.hops) kernels.attention_forward({.slices =
//   hop.slices, ...});
//
// Causality reads the index, isolation of documents the segment, biases the position (docs:
// architecture, ideas 1 and 2).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/args.h"
#include "parallel/attention_pattern.h"
#include "parallel/sequence_layout.h"

namespace farspan {

struct AttentionPlan {
  // One visit of a KV block: at hop h this rank holds rows of rank (rank - h) mod P.
  struct Hop {
    std::vector<AttentionSlice> slices;  // queries: local rows; keys: rows of the block at hand
    std::int64_t kv_rows = 0;            // rows of the block at hand
    std::vector<IndexRange> forwarded;   // of them, the rows that the next rank gets
    std::int64_t num_forwarded = 0;
    std::vector<IndexRange> ended;  // of them, the rows that no later rank needs (h >= 1)
    std::int64_t num_ended = 0;
    std::vector<IndexRange> returned;  // local rows whose last user was rank + h (h >= 1)
    std::int64_t num_returned = 0;
    double visible_pairs = 0;  // of the slices, mean over query heads
  };

  // What all-gather attention exchanges. The gathered block holds the rows received from rank 0, 1,
  // ... (this rank: none, or with PlanRequest::block its own), one after the other.
  struct Gather {
    std::vector<std::vector<IndexRange>> sent;  // [rank]: local rows that it needs
    std::vector<std::int64_t> num_sent;         // [rank]
    std::vector<std::int64_t> num_received;     // [rank]: rows of the gathered block
    std::vector<AttentionSlice> slices;         // keys: rows of the gathered block
    std::int64_t rows = 0;                      // of the gathered block
  };

  std::vector<Hop> hops;        // as many as the longest journey of any row of any rank needs;
                                // hops[0] is this rank's own part, also of all-gather's
  Gather gather;                // filled when asked for
  std::int64_t local_rows = 0;  // tokens of this place of the ring
  std::int64_t max_rows = 0;    // tokens of the largest place: the size of a travelling block
  double visible_pairs = 0;     // (query, key) pairs that this rank computes, mean over query heads
  std::int64_t position_stride = 1;  // for PositionBias
  int num_ranks = 1;                 // places of the ring

  // Rows that this rank sends in one forward pass, and in the backward pass's return of gradients
  // (forwarded partial sums and rows returned to their owners).
  std::int64_t rows_sent() const;
  std::int64_t gradient_rows_sent() const;
};

struct PlanRequest {
  // One number per token of the whole (micro-)batch, equal and adjacent for tokens of one document.
  std::span<const std::int32_t> segments;
  // Position of each token. Needed with an ALiBi or xPos bias only (slices are then cut where
  // positions do not follow the index); empty: position_diagonal is 0 throughout.
  std::span<const std::int32_t> positions;
  const SequenceLayout& layout;  // over the places of the ring; stride() a multiple of the
                                 // pattern's row_stride()
  const AttentionPattern& pattern;
  // The KV heads that this rank computes, as heads of the model, ascending (under Ulysses a share
  // of them, one entry per local KV head, which may repeat). Empty: all `num_kv_heads`.
  std::span<const std::int32_t> local_kv_heads = {};
  std::int64_t num_kv_heads = 1;  // of the model: what the pattern's head ranges count
  bool gather = false;            // fill AttentionPlan::gather
  // Invariant mode (0: off): no slice of `gather` crosses a multiple of `block` tokens from the
  // start of its sequence; they are ordered by query block, then by key index; and this rank's own
  // rows are among the gathered ones, so that gather.slices is the whole of this rank's attention.
  // The layout cuts at the same places.
  std::int64_t block = 0;
  std::int64_t sequence_length = 0;  // read with `block`
};

// Plans of several ranks from one look at the micro-batch (the cost model asks for all of them).
//
//   const AttentionPlanner planner(request);
//   for (int r = 0; r < planner.num_ranks(); ++r) cost(planner.plan(r));
//
// Keeps nothing of the request: its spans and references may go. plan() may be called from several
// threads at once.
class AttentionPlanner {
 public:
  // CHECKs the request. With `block`, also that the layout's runs begin and end with blocks.
  explicit AttentionPlanner(const PlanRequest& request);
  ~AttentionPlanner();
  AttentionPlanner(AttentionPlanner&&) noexcept;
  AttentionPlanner& operator=(AttentionPlanner&&) noexcept;

  int num_ranks() const;
  AttentionPlan plan(int rank) const;

 private:
  friend AttentionPlan plan_attention(const PlanRequest& request, int rank);
  struct State;
  std::unique_ptr<const State> state_;
};

// AttentionPlanner(request).plan(rank), without looking at documents that lie whole on other ranks.
AttentionPlan plan_attention(const PlanRequest& request, int rank);

}  // namespace farspan
