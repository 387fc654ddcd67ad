// How many (query, key) pairs a slice of the attention plan makes visible, in closed form: what
// attention's FLOPs are counted by. For one head; multiply by the query heads.
//
//   visible_pairs({.q_len = 4, .k_len = 4, .kind = MaskKind::kCausal})   // 10
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/args.h"

namespace farspan {

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

}  // namespace farspan
