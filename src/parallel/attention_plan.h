// The mask under a sharding as lists of slices: who multiplies what, and which rows travel.
//
// A pure function of (segments, layout, rank): every rank computes the whole plan without
// communication and they agree. In a ring of P ranks the keys and values owned by rank o visit rank
// o + h at hop h. A row travels only as far as some rank still needs it; what a block has lost on
// the way is squeezed out, so slices of hop h count rows of the squeezed block.
//
//   AttentionPlan plan = plan_attention(batch.segments, layout, rank);
//   for (const AttentionPlan::Hop& hop : plan.hops) kernels.attention_forward({.slices =
//   hop.slices, ...});
//
// Causality reads the index, isolation of documents the segment (docs: architecture, idea 1 and 2).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/args.h"
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
  };

  std::vector<Hop> hops;        // as many as the longest journey of any row of any rank needs
  std::int64_t local_rows = 0;  // tokens of this rank
  std::int64_t max_rows = 0;    // tokens of the largest rank: the size of a travelling block
  double visible_pairs = 0;     // (query, key) pairs that this rank computes
  int num_ranks = 1;

  // Rows that this rank sends in one forward pass, and in the backward pass's return of gradients
  // (forwarded partial sums and rows returned to their owners).
  std::int64_t rows_sent() const;
  std::int64_t gradient_rows_sent() const;
};

// Ring attention's bytes sent by one rank per layer, from its plan: 2 d Hkv values per KV row.
struct RingBytes {
  std::int64_t forward = 0, backward = 0;
};
RingBytes ring_bytes(const AttentionPlan& plan, std::int64_t num_kv_heads, std::int64_t head_dim,
                     DType compute);

// `segments`: one number per token of the whole (micro-)batch, equal and adjacent for tokens of one
// document. Causal attention within documents.
AttentionPlan plan_attention(std::span<const std::int32_t> segments, const SequenceLayout& layout,
                             int rank);

}  // namespace farspan
