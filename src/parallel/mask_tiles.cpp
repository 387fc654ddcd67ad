// The tiles of each pattern: where its definition stands in code.
#include <algorithm>
#include <set>

#include "core/rng.h"
#include "parallel/attention_pattern.h"

namespace farspan {
namespace {

using Tiles = std::vector<MaskTile>;

void check_pattern(const AttentionPattern& p) {
  FARSPAN_CHECK(p.window >= 0 && p.sinks >= 0);
  FARSPAN_CHECK(p.sinks == 0 || p.window > 0, "sinks without a window");
  FARSPAN_CHECK(p.causal || (p.sinks == 0 && p.sparse == SparseKind::kNone),
                "sinks and sparse patterns are causal");
  FARSPAN_CHECK(p.sparse == SparseKind::kNone || p.window == 0, "a sparse pattern with a window");
}

Tiles plain_tiles(const AttentionPattern& p, std::int64_t length) {
  const IndexRange all{0, length};
  MaskTile tile{.q = all, .k = all};
  if (p.window > 0) tile.max_distance = p.window - 1;
  if (!p.causal) tile.min_distance = -tile.max_distance;
  Tiles tiles;
  if (p.sinks > 0 && length > p.window)  // those that the window does not show
    tiles.push_back({.q = {p.window, length},
                     .k = {0, std::min(p.sinks, length - p.window)},
                     .min_distance = p.window});
  tiles.push_back(tile);
  return tiles;
}

Tiles dilated_tiles(const AttentionPattern& p, std::int64_t length, std::int64_t num_kv_heads) {
  FARSPAN_CHECK(!p.branches.empty(), "a dilated pattern without branches");
  Tiles tiles;
  for (const DilatedBranch& b : p.branches) {
    FARSPAN_CHECK(b.dilation >= 1 && b.segment >= 1 && b.segment % b.dilation == 0,
                  "segment {} is no multiple of dilation {}", b.segment, b.dilation);
    for (std::int64_t begin = 0; begin < length; begin += b.segment) {
      const IndexRange segment{begin, std::min(length, begin + b.segment)};
      MaskTile tile{.q = segment, .k = segment, .step = b.dilation};
      if (b.dilation == 1) tiles.push_back(tile);
      // Segments begin at multiples of the dilation: residues of the document and of the segment
      // are the same. Neighbouring heads never share one.
      for (std::int64_t h = 0; b.dilation > 1 && h < num_kv_heads; ++h) {
        tile.residue = h % b.dilation;
        tile.kv_heads = {static_cast<std::int32_t>(h), static_cast<std::int32_t>(h + 1)};
        if (begin + tile.residue < segment.end) tiles.push_back(tile);
      }
    }
  }
  return tiles;
}

Tiles big_bird_tiles(const AttentionPattern& p, std::int64_t length) {
  FARSPAN_CHECK(p.block >= 1 && p.window_blocks >= 1 && p.global_blocks >= 0 &&
                p.random_blocks >= 0);
  Tiles tiles;
  std::vector<std::int64_t> seen;
  for (std::int64_t b = 0; b * p.block < length; ++b) {
    const std::int64_t window_begin = std::max<std::int64_t>(0, b - p.window_blocks + 1);
    seen.clear();
    for (std::int64_t k = 0; k < std::min(p.global_blocks, window_begin); ++k) seen.push_back(k);
    const auto drawn = random_blocks_of(p, b);
    seen.insert(seen.end(), drawn.begin(), drawn.end());
    for (std::int64_t k = window_begin; k <= b; ++k) seen.push_back(k);
    const IndexRange q{b * p.block, std::min(length, (b + 1) * p.block)};
    for (std::size_t i = 0, j = 0; i < seen.size(); i = j) {  // runs of neighbouring blocks
      while (j < seen.size() && seen[j] - seen[i] == static_cast<std::int64_t>(j - i)) ++j;
      tiles.push_back(
          {.q = q, .k = {seen[i] * p.block, std::min(length, (seen[j - 1] + 1) * p.block)}});
    }
  }
  return tiles;
}

Tiles shifted_tiles(const AttentionPattern& p, std::int64_t length, std::int64_t num_kv_heads) {
  FARSPAN_CHECK(p.group >= 2 && p.group % 2 == 0, "groups of {} tokens cannot shift by half",
                p.group);
  FARSPAN_CHECK(num_kv_heads % 2 == 0, "{} KV heads have no halves", num_kv_heads);
  const auto half = static_cast<std::int32_t>(num_kv_heads / 2);
  Tiles tiles;
  const auto add_groups = [&](std::int64_t first_border, HeadRange heads) {
    for (std::int64_t begin = 0, end = first_border; begin < length; begin = end, end += p.group) {
      const IndexRange group{begin, std::min(length, end)};
      tiles.push_back({.q = group, .k = group, .kv_heads = heads});
    }
  };
  add_groups(p.group, {0, half});
  add_groups(p.group / 2, {half, 2 * half});
  return tiles;
}

}  // namespace

std::vector<std::int64_t> random_blocks_of(const AttentionPattern& p, std::int64_t query_block) {
  // Candidates: blocks [global_blocks, global_blocks + left) before the window.
  const std::int64_t left = query_block - p.window_blocks + 1 - p.global_blocks;
  const CounterRng rng(p.seed, static_cast<std::uint64_t>(query_block));
  std::set<std::int64_t> drawn;
  // Floyd's sample without replacement: (left choose n) sets, all alike.
  const std::int64_t n = std::max<std::int64_t>(0, std::min(p.random_blocks, left));
  for (std::int64_t top = left - n; top < left; ++top) {
    const auto pick = static_cast<std::int64_t>(rng.below(
        static_cast<std::uint64_t>(top - (left - n)), static_cast<std::uint64_t>(top) + 1));
    drawn.insert(p.global_blocks + (drawn.contains(p.global_blocks + pick) ? top : pick));
  }
  return {drawn.begin(), drawn.end()};
}

std::vector<MaskTile> mask_tiles(const AttentionPattern& pattern, std::int64_t length,
                                 std::int64_t num_kv_heads) {
  check_pattern(pattern);
  FARSPAN_CHECK(length >= 0 && num_kv_heads >= 1);
  if (length == 0) return {};
  switch (pattern.sparse) {
    case SparseKind::kDilated:
      return dilated_tiles(pattern, length, num_kv_heads);
    case SparseKind::kBigBird:
      return big_bird_tiles(pattern, length);
    case SparseKind::kShifted:
      return shifted_tiles(pattern, length, num_kv_heads);
    case SparseKind::kNone:
      break;
  }
  return plain_tiles(pattern, length);
}

}  // namespace farspan
