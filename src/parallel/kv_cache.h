// Keys and values of a document's tokens, kept from one pass to the next, so that each token is
// computed once (generation). A rank keeps some of the tokens; which ones, and in which rows, is
// the same for all layers and is all that a plan needs.
//
//   KvCache cache(arena, {.num_layers = 4, .capacity = 4096, .num_kv_heads = 2, .head_dim = 32});
//   cache.extend({{.first = 0, .count = 512}});            // tokens 0..511 come next
//   cache.put(layer, k, v, {{0, 512}}, ctx);               // once in every layer
//   AttentionPlan plan = plan_over_cache({.queries = ..., .keys = cache.pieces(), ...});
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/attention_pattern.h"
#include "parallel/plan_pieces.h"
#include "parallel/step_context.h"

namespace farspan {

class KvCache {
 public:
  struct Sizes {
    std::int64_t num_layers = 0, capacity = 0;  // tokens of this rank
    std::int64_t num_kv_heads = 0, head_dim = 0;
    DType dtype = DType::kF32;
  };

  KvCache(Arena& arena, const Sizes& sizes);

  // These tokens take the rows after those in use: `row` is filled in. CHECKs the capacity.
  void extend(std::vector<TokenPiece> pieces, std::int64_t stride = 1);
  // Forgets all tokens but the last `count`, which move to the first rows. The cache must hold one
  // run of tokens, by a stride of 1.
  void keep_last(std::int64_t count, const StepContext& ctx);
  // The tokens last extended by: the given rows of k and v (n, Hkv, D).
  void put(int layer, Tensor k, Tensor v, const std::vector<IndexRange>& rows,
           const StepContext& ctx);

  // (rows(), Hkv, D), those of the last extend() included.
  Tensor k(int layer) const { return keys_[static_cast<std::size_t>(layer)].rows(0, rows_); }
  Tensor v(int layer) const { return values_[static_cast<std::size_t>(layer)].rows(0, rows_); }
  // Of those: keys of the last extend().
  Tensor new_k(int layer) const { return k(layer).rows(rows_ - new_rows_, new_rows_); }
  std::int64_t rows() const { return rows_; }
  std::int64_t capacity() const { return capacity_; }
  std::span<const TokenPiece> pieces() const { return pieces_; }

 private:
  std::vector<Tensor> keys_, values_;  // of each layer, (capacity, Hkv, D)
  std::int64_t capacity_;
  std::int64_t rows_ = 0, new_rows_ = 0;  // in use; of them, from the last extend()
  std::vector<TokenPiece> pieces_;        // by row
};

// The order in which a rank computes tokens [begin, end) of a document: ascending, and for a stride
// above 1 residue by residue, so that plain rows step by it.
std::vector<std::int32_t> token_order(std::int64_t begin, std::int64_t end, std::int64_t stride);

// Runs of `tokens` that step by `stride`, with their rows; positions are the tokens' indices.
std::vector<TokenPiece> pieces_of(std::span<const std::int32_t> tokens, std::int64_t stride);

// What a tile shows of the pieces, as slices; for each query piece keys in the order given. Adds
// the number of visible pairs to `pairs`.
std::vector<AttentionSlice> slices_of_tile(const MaskTile& tile,
                                           std::span<const TokenPiece> queries,
                                           std::span<const TokenPiece> keys, std::int64_t stride,
                                           double& pairs);

struct CachePlanRequest {
  std::span<const TokenPiece> queries;  // rows of q
  std::span<const TokenPiece> keys;     // rows of the cache; any order
  const AttentionPattern& pattern;
  std::int64_t length = 0;  // tokens of the document so far: all queries and keys are among them
  std::int64_t num_kv_heads = 1;
  std::int64_t stride = 1;  // of the pieces; a multiple of the pattern's row_stride()
};

// One hop: what the queries see of the keys, for each query keys ascending (but for a dilated
// mixture's branches).
AttentionPlan plan_over_cache(const CachePlanRequest& request);

}  // namespace farspan
