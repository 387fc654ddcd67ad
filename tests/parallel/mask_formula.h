// The definition of every pattern per (query, key, head), straight from the formulas and apart from
// the code under test; and a set of patterns that meets every branch of it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "parallel/attention_pattern.h"

namespace farspan::testing {

// How often query i sees key j of a document (a dilated mixture counts some pairs twice).
inline int count_of(const AttentionPattern& p, std::int64_t i, std::int64_t j, std::int64_t head,
                    std::int64_t num_kv_heads) {
  if (p.causal && j > i) return 0;
  switch (p.sparse) {
    case SparseKind::kNone:
      if (p.window == 0) return 1;
      if (p.causal) return j > i - p.window || j < p.sinks ? 1 : 0;
      return std::max(i - j, j - i) < p.window ? 1 : 0;
    case SparseKind::kDilated: {
      int count = 0;
      for (const DilatedBranch& b : p.branches) {
        const auto kept = [&](std::int64_t t) {
          return t % b.segment % b.dilation == head % b.dilation;
        };
        count += i / b.segment == j / b.segment && kept(i) && kept(j) ? 1 : 0;
      }
      return count;
    }
    case SparseKind::kBigBird: {
      const std::int64_t q = i / p.block, k = j / p.block;
      if (k < p.global_blocks || q - k < p.window_blocks) return 1;
      const auto drawn = random_blocks_of(p, q);
      return std::count(drawn.begin(), drawn.end(), k) > 0 ? 1 : 0;
    }
    case SparseKind::kShifted: {
      const std::int64_t shift = head < num_kv_heads / 2 ? 0 : p.group / 2;
      return (i + shift) / p.group == (j + shift) / p.group ? 1 : 0;
    }
  }
  return 0;
}

inline std::vector<AttentionPattern> sample_patterns() {
  using enum SparseKind;
  return {
      {},
      {.window = 1},
      {.window = 5},
      {.window = 16},
      {.window = 1000},
      {.window = 1, .sinks = 1},
      {.window = 6, .sinks = 3},
      {.window = 3, .sinks = 9},
      {.window = 8, .sinks = 100},
      {.causal = false},
      {.causal = false, .window = 1},
      {.causal = false, .window = 6},
      {.sparse = kDilated, .branches = {{8, 1}, {16, 2}, {32, 4}}},
      {.sparse = kDilated, .branches = {{12, 3}}},
      {.sparse = kDilated, .branches = {{4, 2}, {6, 6}, {9, 1}}},
      {.sparse = kBigBird, .block = 4, .window_blocks = 3, .global_blocks = 1, .random_blocks = 2},
      {.sparse = kBigBird, .block = 3, .window_blocks = 1, .global_blocks = 0, .random_blocks = 3},
      {.sparse = kBigBird, .block = 5, .window_blocks = 2, .global_blocks = 3, .random_blocks = 0},
      {.sparse = kBigBird, .block = 4, .window_blocks = 3, .global_blocks = 0, .random_blocks = 0},
      {.sparse = kShifted, .group = 8},
      {.sparse = kShifted, .group = 2},
      {.sparse = kShifted, .group = 26},
  };
}

}  // namespace farspan::testing
