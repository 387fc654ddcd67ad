// The work lists of the CUDA attention kernels against the mask itself, pair by pair.
#include <gtest/gtest.h>

#include <map>
#include <vector>

#include "core/rng.h"
#include "kernels/cuda/attention/slice_schedule.h"
#include "support/reference_attention.h"

namespace farspan::testing {
namespace {

using cuda::build_schedule;
using cuda::ScheduleShape;
using cuda::SliceItem;
using cuda::SliceSchedule;
using cuda::Stationary;
using cuda::StationaryTile;

AttentionSlice random_slice(const CounterRng& rng, std::uint64_t& n, const ScheduleShape& shape) {
  const auto draw = [&](std::int64_t low, std::int64_t high) {
    return low +
           static_cast<std::int64_t>(rng.below(n++, static_cast<std::uint64_t>(high - low + 1)));
  };
  AttentionSlice s{.q_begin = draw(0, shape.num_q), .k_begin = draw(0, shape.num_k)};
  s.q_len = draw(0, shape.num_q - s.q_begin);
  s.k_len = draw(0, shape.num_k - s.k_begin);
  s.kind = static_cast<MaskKind>(draw(0, 3));
  s.diagonal = draw(-60, 60);
  s.window = draw(0, 50);
  s.kv_heads = {.begin = static_cast<std::int32_t>(draw(0, 1)),
                .end = static_cast<std::int32_t>(draw(0, 3))};
  return s;
}

// Pair (s, m) of the item's slice, stationary row first.
bool visible(const SliceItem& item, const ScheduleShape& shape, std::int64_t s, std::int64_t m) {
  const bool by_query = shape.stationary == Stationary::kQueries;
  const std::int64_t distance = by_query ? s - m : m - s;
  return distance >= item.min_distance && distance <= item.max_distance;
}

struct Sides {
  std::int64_t begin, len, moving_len;
};
Sides sides_of(const SliceItem& i, const ScheduleShape& shape) {
  if (shape.stationary == Stationary::kQueries) return {i.q_begin, i.q_len, i.k_len};
  return {i.k_begin, i.k_len, i.q_len};
}

// Every moving tile of the item shows something, those called full show all, those left out
// nothing.
void check_item(const SliceItem& item, const StationaryTile& tile, const ScheduleShape& shape) {
  const Sides side = sides_of(item, shape);
  const std::int64_t num_rows =
      shape.stationary == Stationary::kQueries ? shape.num_q : shape.num_k;
  const std::int64_t end = std::min<std::int64_t>(tile.row_begin + shape.tile, num_rows);
  ASSERT_LE(item.begin, item.full_begin);
  ASSERT_LE(item.full_begin, item.full_end);
  ASSERT_LE(item.full_end, item.end);
  for (std::int64_t t = 0; t * shape.moving_tile < side.moving_len; ++t) {
    bool some = false, every = (t + 1) * shape.moving_tile <= side.moving_len;
    for (std::int64_t row = tile.row_begin; row < end; ++row)
      for (std::int64_t m = t * shape.moving_tile;
           m < std::min<std::int64_t>((t + 1) * shape.moving_tile, side.moving_len); ++m) {
        const std::int64_t s = row - side.begin;
        const bool shown = s >= 0 && s < side.len && visible(item, shape, s, m);
        some |= shown;
        every &= shown;
      }
    const bool listed = t >= item.begin && t < item.end;
    EXPECT_TRUE(listed || !some) << "tile " << t << " of slice " << item.slice;
    if (t == item.begin || t == item.end - 1) {
      EXPECT_TRUE(some) << "tile " << t << " of slice " << item.slice;
    }
    EXPECT_EQ(t >= item.full_begin && t < item.full_end, every)
        << "tile " << t << " of slice " << item.slice;
  }
}

void check_schedule(const std::vector<AttentionSlice>& slices, const ScheduleShape& shape) {
  const SliceSchedule schedule = build_schedule(slices, shape);
  const bool by_query = shape.stationary == Stationary::kQueries;
  const std::int64_t num_rows = by_query ? shape.num_q : shape.num_k;
  ASSERT_EQ(schedule.tiles.size(),
            static_cast<std::size_t>((num_rows + shape.tile - 1) / shape.tile));
  std::map<std::pair<std::int64_t, std::int32_t>, int> met;  // (row, slice)
  std::vector<bool> seen(schedule.tiles.size(), false);
  for (const StationaryTile& tile : schedule.tiles) {
    ASSERT_EQ(tile.row_begin % shape.tile, 0);
    const auto index = static_cast<std::size_t>(tile.row_begin / shape.tile);
    EXPECT_FALSE(seen[index]);
    seen[index] = true;
    std::int32_t last = -1, moving_tiles = 0;
    for (std::int32_t i = tile.item_begin; i < tile.item_end; ++i) {
      const SliceItem& item = schedule.items[static_cast<std::size_t>(i)];
      EXPECT_GT(item.slice, last);
      last = item.slice;
      moving_tiles += item.end - item.begin;
      check_item(item, tile, shape);
      for (std::int64_t row = tile.row_begin; row < tile.row_begin + shape.tile; ++row)
        ++met[{row, item.slice}];
    }
    EXPECT_EQ(moving_tiles, tile.moving_tiles);
  }
  // A pair that a slice shows belongs to an item.
  for (std::size_t x = 0; x < slices.size(); ++x) {
    const AttentionSlice& s = slices[x];
    if (std::min<std::int64_t>(s.kv_heads.end, shape.num_kv_heads) <= s.kv_heads.begin) continue;
    for (std::int64_t i = 0; i < s.q_len; ++i)
      for (std::int64_t j = 0; j < s.k_len; ++j)
        if (is_visible(s, i, j)) {
          const std::int64_t row = by_query ? s.q_begin + i : s.k_begin + j;
          ASSERT_EQ((met[{row, static_cast<std::int32_t>(x)}]), 1) << "slice " << x;
        }
  }
}

TEST(CudaSliceSchedule, RandomSlices) {
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE(seed);
    const CounterRng rng(seed, stream_id("schedule"));
    std::uint64_t n = 0;
    ScheduleShape shape{.stationary = seed % 2 == 0 ? Stationary::kQueries : Stationary::kKeys,
                        .num_q = 1 + static_cast<std::int64_t>(rng.below(n++, 90)),
                        .num_k = 1 + static_cast<std::int64_t>(rng.below(n++, 90)),
                        .num_kv_heads = 2,
                        .tile = 16,
                        .moving_tile = 8};
    std::vector<AttentionSlice> slices;
    for (int i = 0; i < 5; ++i) slices.push_back(random_slice(rng, n, shape));
    check_schedule(slices, shape);
  }
}

TEST(CudaSliceSchedule, LongestTilesFirst) {
  const std::vector<AttentionSlice> causal{
      {.q_len = 1000, .k_len = 1000, .kind = MaskKind::kCausal}};
  ScheduleShape shape{.num_q = 1100, .num_k = 1000, .tile = 128, .moving_tile = 64};
  SliceSchedule s = build_schedule(causal, shape);
  ASSERT_EQ(s.tiles.size(), 9u);
  for (std::size_t t = 1; t < s.tiles.size(); ++t)
    EXPECT_LE(s.tiles[t].moving_tiles, s.tiles[t - 1].moving_tiles);
  EXPECT_EQ(s.tiles[0].row_begin, 896);
  EXPECT_EQ(s.tiles.back().item_end, s.tiles.back().item_begin);  // rows that no slice touches
  shape.stationary = Stationary::kKeys;
  s = build_schedule(causal, shape);
  EXPECT_EQ(s.tiles[0].row_begin, 0);
  EXPECT_EQ(s.tiles[0].moving_tiles, 16);
}

TEST(CudaSliceSchedule, NothingToDo) {
  EXPECT_TRUE(build_schedule({}, {.tile = 128, .moving_tile = 64}).tiles.empty());
  const auto s = build_schedule({}, {.num_q = 300, .num_k = 7, .tile = 128, .moving_tile = 64});
  EXPECT_EQ(s.tiles.size(), 3u);
  EXPECT_TRUE(s.items.empty());
}

TEST(CudaSliceSchedule, TensOfThousandsOfDocuments) {
  std::vector<AttentionSlice> documents;
  for (std::int64_t d = 0; d < 40000; ++d)
    documents.push_back({.q_begin = 25 * d,
                         .q_len = 25,
                         .k_begin = 25 * d,
                         .k_len = 25,
                         .kind = MaskKind::kCausal});
  const auto s = build_schedule(
      documents, {.num_q = 1000000, .num_k = 1000000, .tile = 128, .moving_tile = 64});
  EXPECT_LT(s.items.size(), 40000u + s.tiles.size());
}

}  // namespace
}  // namespace farspan::testing
