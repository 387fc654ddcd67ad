// How many (query, key) pairs a slice of the attention plan makes visible, in closed form: what
// attention's FLOPs are counted by. For one head; multiply by the query heads.
//
//   visible_pairs({.q_len = 4, .k_len = 4, .kind = MaskKind::kCausal})   // 10
//   visible_pairs(slice, num_kv_heads)      // the mean over all heads, of which it shows to some
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/args.h"

namespace farspan {

// Of num_kv_heads, those that the slice is for.
constexpr std::int64_t heads_of(const AttentionSlice& s, std::int64_t num_kv_heads) {
  return std::max<std::int64_t>(
      0, std::min<std::int64_t>(s.kv_heads.end, num_kv_heads) - s.kv_heads.begin);
}

// Pairs (i, j) of [0, q) x [0, k) with i - j >= distance.
constexpr std::int64_t pairs_at_least(std::int64_t q, std::int64_t k, std::int64_t distance) {
  // Row i sees clamp(i - distance + 1, 0, k) keys: none before `first`, all from `full` on.
  const std::int64_t first = std::clamp<std::int64_t>(distance, 0, q);
  const std::int64_t full = std::clamp<std::int64_t>(distance + k - 1, first, q);
  const std::int64_t rising = full - first;
  const std::int64_t least = first - distance + 1;  // keys of row `first`, if it is a rising one
  return rising * least + rising * (rising - 1) / 2 + (q - full) * k;
}

constexpr std::int64_t visible_pairs(const AttentionSlice& s) {
  if (s.q_len <= 0 || s.k_len <= 0) return 0;
  const std::int64_t all = s.q_len * s.k_len;
  // delta = i - j + diagonal, so delta >= x is i - j >= x - diagonal.
  const std::int64_t causal = pairs_at_least(s.q_len, s.k_len, -s.diagonal);
  const std::int64_t beyond = pairs_at_least(s.q_len, s.k_len, s.window - s.diagonal);
  switch (s.kind) {
    case MaskKind::kFull:
      return all;
    case MaskKind::kCausal:
      return causal;
    case MaskKind::kInverseCausal:
      return all - beyond;
    case MaskKind::kBand:
      return std::max<std::int64_t>(0, causal - beyond);
  }
  return 0;
}

// Visible pairs of the mean head.
constexpr double visible_pairs(const AttentionSlice& s, std::int64_t num_kv_heads) {
  return static_cast<double>(visible_pairs(s)) * static_cast<double>(heads_of(s, num_kv_heads)) /
         static_cast<double>(num_kv_heads);
}

// The smallest p (args.h: PositionBias) of what the slice makes visible, which must be something:
// that of its last visible key and the first row that sees it.
constexpr std::int64_t shortest_distance(const AttentionSlice& s, std::int64_t position_stride) {
  const bool causal = s.kind == MaskKind::kCausal || s.kind == MaskKind::kBand;
  const std::int64_t rows = causal ? std::max(1 - s.k_len, -s.diagonal) : 1 - s.k_len;
  return rows * position_stride + s.position_diagonal;
}

}  // namespace farspan
