// What a tile shows of two pieces of a document, in rows.
#pragma once

#include <algorithm>
#include <cstdint>

#include "parallel/plan_pieces.h"

namespace farspan {

// Rows [q_begin, q_end) of the query piece and [k_begin, k_end) of the key piece; element (i, j),
// counted from the pieces' beginnings, is visible iff low <= i - j + diagonal <= high. Every row of
// both sees, or is seen by, something.
struct TileOverlap {
  std::int64_t q_begin = 0, q_end = 0;
  std::int64_t k_begin = 0, k_end = 0;
  std::int64_t diagonal = 0, low = 0, high = 0;
  bool empty() const { return k_begin >= k_end; }
};

inline std::int64_t floor_div(std::int64_t a, std::int64_t positive) {
  return a >= 0 ? a / positive : -((positive - 1 - a) / positive);
}

// Tokens to rows: with first tokens apart by s diagonal + rest (0 <= rest < s), rows (i, j) are
// s (i - j + diagonal) + rest tokens apart.
inline TileOverlap tile_overlap(const TokenPiece& query, const TokenPiece& key,
                                const MaskTile& mask, std::int64_t stride) {
  const std::int64_t apart = query.first - key.first;
  TileOverlap o{.diagonal = apart, .low = mask.min_distance, .high = mask.max_distance};
  if (stride > 1) {
    o.diagonal = floor_div(apart, stride);
    const std::int64_t rest = apart - o.diagonal * stride;
    o.low = floor_div(mask.min_distance - rest + stride - 1, stride);
    o.high = floor_div(mask.max_distance - rest, stride);
  }
  if (o.low > o.high) return {};
  // Key j is seen from row i iff diagonal - high <= j - i <= diagonal - low: over all i, one run.
  o.k_begin = std::max<std::int64_t>(0, o.diagonal - o.high);
  o.k_end = std::min(key.count, query.count + o.diagonal - o.low);
  o.q_begin = std::max<std::int64_t>(0, o.low - o.diagonal);
  o.q_end = std::min(query.count, key.count + o.high - o.diagonal);
  return o;
}

// How many of the key piece's rows are at least mask.min_distance before token `last`: what a rank
// whose last query that is needs, when the tile has no upper bound.
inline std::int64_t keys_before(std::int64_t last, const TokenPiece& key, const MaskTile& mask,
                                std::int64_t stride) {
  const std::int64_t span = last - mask.min_distance - key.first;
  return span < 0 ? 0 : std::min(key.count, span / stride + 1);
}

// The overlap (not empty) as a slice; k_begin counts from the key's owner's first row. Sets
// `visible` to the number of visible pairs.
AttentionSlice slice_of(const TileOverlap& overlap, const TokenPiece& query, const TokenPiece& key,
                        double& visible);

}  // namespace farspan
