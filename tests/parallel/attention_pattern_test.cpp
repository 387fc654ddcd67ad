// Patterns against their formulas, written once more per (query, key, head).
#include "parallel/attention_pattern.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "parallel/mask_formula.h"

namespace farspan {
namespace {

using testing::count_of;
using testing::sample_patterns;

constexpr std::int64_t kHeads = 4;

std::string name_of(const AttentionPattern& p, std::int64_t length) {
  return p.description() + ", length " + std::to_string(length);
}

TEST(MaskTiles, ShowWhatTheFormulasShow) {
  for (const AttentionPattern& p : sample_patterns())
    for (const std::int64_t n : {0, 1, 2, 3, 5, 7, 8, 12, 13, 16, 31, 48, 61}) {
      SCOPED_TRACE(name_of(p, n));
      std::map<std::array<std::int64_t, 3>, int> shown;
      for (const MaskTile& t : mask_tiles(p, n, kHeads)) {
        ASSERT_TRUE(0 <= t.q.begin && t.q.begin < t.q.end && t.q.end <= n);
        ASSERT_TRUE(0 <= t.k.begin && t.k.begin < t.k.end && t.k.end <= n);
        const auto last = std::min<std::int64_t>(t.kv_heads.end, kHeads);
        for (std::int64_t i = t.q.begin; i < t.q.end; ++i)
          for (std::int64_t j = t.k.begin; j < t.k.end; ++j) {
            if (i - j < t.min_distance || i - j > t.max_distance) continue;
            if (i % t.step != t.residue || j % t.step != t.residue) continue;
            for (std::int64_t h = t.kv_heads.begin; h < last; ++h) ++shown[{i, j, h}];
          }
      }
      for (std::int64_t i = 0; i < n; ++i)
        for (std::int64_t j = 0; j < n; ++j)
          for (std::int64_t h = 0; h < kHeads; ++h) {
            const auto it = shown.find({i, j, h});
            ASSERT_EQ(it == shown.end() ? 0 : it->second, count_of(p, i, j, h, kHeads))
                << "query " << i << ", key " << j << ", head " << h;
          }
    }
}

TEST(MaskTiles, KeysAscendForEachQuery) {
  for (const AttentionPattern& p : sample_patterns()) {
    if (p.sparse == SparseKind::kDilated) continue;
    for (const std::int64_t n : {7, 48, 61})
      for (std::int64_t i = 0; i < n; ++i)
        for (std::int32_t h = 0; h < kHeads; ++h) {
          std::int64_t next = 0;
          for (const MaskTile& t : mask_tiles(p, n, kHeads)) {
            if (i < t.q.begin || i >= t.q.end || h < t.kv_heads.begin || h >= t.kv_heads.end)
              continue;
            const std::int64_t first = std::max(t.k.begin, i - t.max_distance);
            const std::int64_t last = std::min(t.k.end - 1, i - t.min_distance);
            if (first > last) continue;
            EXPECT_GE(first, next) << name_of(p, n) << ", query " << i << ", head " << h;
            next = last + 1;
          }
        }
  }
}

// transformers' masking_utils.sliding_window_overlay: key > query - sliding_window, with causality.
// Mistral's and Qwen2's sliding_window: the token itself and window - 1 before it.
TEST(MaskTiles, WindowBoundaryIsThatOfTransformers) {
  const auto tiles = mask_tiles({.window = 4}, 100, 1);
  ASSERT_EQ(tiles.size(), 1u);
  EXPECT_EQ(tiles[0].min_distance, 0);
  EXPECT_EQ(tiles[0].max_distance, 3);  // query 10 sees keys 7, 8, 9, 10: 7 > 10 - 4, 6 is not
  const RowArea area({.window = 4});
  EXPECT_EQ(area.of_rows(10, 11, 100), 4);
  EXPECT_EQ(area.of_rows(2, 3, 100), 3);  // 0, 1, 2
}

TEST(MaskTiles, SinksDoNotSeeAheadAndAreNotCountedTwice) {
  const auto tiles = mask_tiles({.window = 4, .sinks = 2}, 100, 1);
  ASSERT_EQ(tiles.size(), 2u);
  EXPECT_EQ(tiles[0].k, (IndexRange{0, 2}));
  EXPECT_EQ(tiles[0].min_distance, 4);
  const RowArea area({.window = 4, .sinks = 2});
  EXPECT_EQ(area.of_rows(0, 1, 100), 1);
  EXPECT_EQ(area.of_rows(4, 5, 100), 5);  // 0 as a sink; 1 2 3 4 in the window
  EXPECT_EQ(area.of_rows(50, 51, 100), 6);
}

TEST(RandomBlocks, DistinctEarlierUnseenAndRepeatable) {
  AttentionPattern p{.sparse = SparseKind::kBigBird,
                     .block = 4,
                     .window_blocks = 2,
                     .global_blocks = 1,
                     .random_blocks = 3,
                     .seed = 7};
  std::set<std::vector<std::int64_t>> draws;
  std::map<std::int64_t, int> chosen;
  for (std::int64_t b = 0; b < 200; ++b) {
    const auto blocks = random_blocks_of(p, b);
    EXPECT_EQ(static_cast<std::int64_t>(blocks.size()), std::clamp<std::int64_t>(b - 2, 0, 3));
    EXPECT_TRUE(std::is_sorted(blocks.begin(), blocks.end()));
    EXPECT_EQ(std::adjacent_find(blocks.begin(), blocks.end()), blocks.end());
    for (const std::int64_t k : blocks) {
      EXPECT_GE(k, 1) << "block 0 is global";
      EXPECT_LE(k, b - 2) << "the window holds " << b - 1 << " and " << b;
      ++chosen[k];
    }
    EXPECT_EQ(blocks, random_blocks_of(p, b));
    draws.insert(blocks);
  }
  EXPECT_GT(draws.size(), 150u);
  EXPECT_GT(chosen.size(), 100u);
  p.seed = 8;
  int same = 0;
  for (std::int64_t b = 100; b < 200; ++b) {
    AttentionPattern other = p;
    other.seed = 7;
    same += random_blocks_of(p, b) == random_blocks_of(other, b);
  }
  EXPECT_LT(same, 10);
}

// Floyd's sampling: of 4 candidates each pair comes up alike (6 pairs, 6000 seeds, +- 5 sigma).
TEST(RandomBlocks, EverySetAlike) {
  std::map<std::vector<std::int64_t>, int> count;
  for (std::uint64_t seed = 0; seed < 6000; ++seed)
    ++count[random_blocks_of({.sparse = SparseKind::kBigBird,
                              .window_blocks = 1,
                              .global_blocks = 0,
                              .random_blocks = 2,
                              .seed = seed},
                             4)];
  EXPECT_EQ(count.size(), 6u);
  for (const auto& [pair, times] : count)
    EXPECT_NEAR(times, 1000, 150) << pair[0] << ", " << pair[1];
}

TEST(RowArea, CountsTheFormulasPairs) {
  for (const AttentionPattern& p : sample_patterns())
    for (const std::int64_t n : {1, 2, 5, 8, 13, 16, 31, 48, 61}) {
      SCOPED_TRACE(name_of(p, n));
      const RowArea area(p, kHeads);
      std::vector<double> row(static_cast<std::size_t>(n), 0);
      for (std::int64_t i = 0; i < n; ++i)
        for (std::int64_t j = 0; j < n; ++j)
          for (std::int64_t h = 0; h < kHeads; ++h)
            row[static_cast<std::size_t>(i)] += count_of(p, i, j, h, kHeads);
      for (std::int64_t begin = 0; begin <= n; ++begin) {
        double sum = 0;
        for (std::int64_t end = begin; end <= n; ++end) {
          ASSERT_DOUBLE_EQ(area.of_rows(begin, end, n), sum / kHeads)
              << "rows [" << begin << ", " << end << ")";
          if (end < n) sum += row[static_cast<std::size_t>(end)];
        }
      }
    }
}

TEST(RowArea, ReachBoundsTheDistanceOfAnyPair) {
  for (const AttentionPattern& p : sample_patterns()) {
    const RowArea area(p, kHeads);
    const std::int64_t n = 61;
    std::int64_t farthest = 0;
    for (std::int64_t i = 0; i < n; ++i)
      for (std::int64_t j = p.sinks; j <= i; ++j)
        for (std::int64_t h = 0; h < kHeads; ++h)
          if (count_of(p, i, j, h, kHeads) > 0) farthest = std::max(farthest, i - j);
    EXPECT_LT(farthest, area.reach()) << p.description();
    if (area.reach() < n && p.sinks == 0) {
      EXPECT_GT(farthest, area.reach() - std::max<std::int64_t>(2, p.row_stride() + 1))
          << p.description() << ": a reach that nothing needs";
    }
  }
}

TEST(AttentionPattern, Descriptions) {
  EXPECT_EQ(AttentionPattern{}.description(), "causal");
  EXPECT_EQ((AttentionPattern{.window = 4096, .sinks = 4}.description()), "window 4096 + 4 sinks");
  EXPECT_EQ((AttentionPattern{.causal = false}.description()), "both directions");
  EXPECT_EQ((AttentionPattern{.sparse = SparseKind::kDilated, .branches = {{2048, 1}, {4096, 2}}}
                 .description()),
            "dilated 2048/1 + 4096/2");
  EXPECT_EQ(
      (AttentionPattern{.sparse = SparseKind::kDilated, .branches = {{4, 4}, {6, 6}}}.row_stride()),
      12);
}

TEST(AttentionPattern, ImpossibleOnesAreRefused) {
  EXPECT_THROW(mask_tiles({.sinks = 2}, 8, 1), InternalError);
  EXPECT_THROW(mask_tiles({.causal = false, .window = 4, .sinks = 2}, 8, 1), InternalError);
  EXPECT_THROW(mask_tiles({.window = 2, .sparse = SparseKind::kShifted, .group = 4}, 8, 2),
               InternalError);
  EXPECT_THROW(mask_tiles({.sparse = SparseKind::kShifted, .group = 4}, 8, 3), InternalError);
  EXPECT_THROW(mask_tiles({.sparse = SparseKind::kShifted, .group = 3}, 8, 2), InternalError);
  EXPECT_THROW(mask_tiles({.sparse = SparseKind::kDilated, .branches = {{6, 4}}}, 8, 2),
               InternalError);
  EXPECT_THROW(mask_tiles({.sparse = SparseKind::kDilated}, 8, 2), InternalError);
}

TEST(LayerPatterns, AllLayersAlikeByDefault) {
  config::Model model;
  model.set_num_hidden_layers(3);
  EXPECT_EQ(layer_patterns(model).patterns, (std::vector<AttentionPattern>{{}}));
  EXPECT_EQ(layer_patterns(model).of_layer, (std::vector<int>{0, 0, 0}));
  model.set_sliding_window(8);
  model.set_attention_sinks(2);
  EXPECT_EQ(layer_patterns(model).patterns,
            (std::vector<AttentionPattern>{{.window = 8, .sinks = 2}}));
  model.clear_attention_sinks();
  model.set_is_causal(false);
  EXPECT_EQ(layer_patterns(model).patterns,
            (std::vector<AttentionPattern>{{.causal = false, .window = 8}}));
}

TEST(LayerPatterns, WindowsWhereTheTypesSay) {
  config::Model model;
  model.set_num_hidden_layers(4);
  model.set_sliding_window(8);
  for (const char* type :
       {"full_attention", "sliding_attention", "full_attention", "sliding_attention"})
    model.add_layer_types(type);
  const LayerPatterns p = layer_patterns(model);
  EXPECT_EQ(p.patterns, (std::vector<AttentionPattern>{{}, {.window = 8}}));
  EXPECT_EQ(p.of_layer, (std::vector<int>{0, 1, 0, 1}));
}

TEST(LayerPatterns, SparsePatternsFromTheirKeys) {
  config::Model model;
  model.set_num_hidden_layers(2);
  auto& sparse = *model.mutable_sparse_attention();
  sparse.set_type("dilated");
  for (const std::int64_t n : {16, 32}) sparse.add_segment_lengths(n);
  for (const std::int64_t n : {1, 2}) sparse.add_dilations(n);
  EXPECT_EQ(layer_patterns(model).patterns,
            (std::vector<AttentionPattern>{
                {.sparse = SparseKind::kDilated, .branches = {{16, 1}, {32, 2}}}}));
  EXPECT_EQ(layer_patterns(model).of_layer, (std::vector<int>{0, 0}));
  sparse.Clear();
  sparse.set_type("bigbird");
  sparse.set_block_size(16);
  sparse.set_window_blocks(5);
  sparse.set_global_blocks(2);
  sparse.set_random_blocks(4);
  EXPECT_EQ(layer_patterns(model).patterns,
            (std::vector<AttentionPattern>{{.sparse = SparseKind::kBigBird,
                                            .block = 16,
                                            .window_blocks = 5,
                                            .global_blocks = 2,
                                            .random_blocks = 4}}));
  sparse.Clear();
  sparse.set_type("s2");
  sparse.set_group_size(64);
  EXPECT_EQ(layer_patterns(model).patterns,
            (std::vector<AttentionPattern>{{.sparse = SparseKind::kShifted, .group = 64}}));
}

}  // namespace
}  // namespace farspan
