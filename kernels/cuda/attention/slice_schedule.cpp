#include "kernels/cuda/attention/slice_schedule.h"

#include <algorithm>
#include <numeric>

#include "core/error.h"

namespace farspan::cuda {
namespace {

using Index = std::int64_t;

constexpr Index kMostRows = Index{1} << 30;

Index ceil_div(Index n, Index unit) { return (n + unit - 1) / unit; }

struct Range {
  Index begin, end;
  Index length() const { return std::max<Index>(0, end - begin); }
};

// One side of a slice: rows [begin, begin + len) of its tensor.
struct Side {
  Index begin, len;
};

// A slice seen from its stationary side: rows s and m, counted from the corner, see each other iff
// low <= s - m <= high.
struct View {
  Side stationary, moving;
  Index low, high;

  // Moving rows that stationary rows [rows.begin, rows.end) see between them.
  Range any(Range rows) const {
    return {std::clamp<Index>(rows.begin - high, 0, moving.len),
            std::clamp<Index>(rows.end - low, 0, moving.len)};
  }
  // Moving rows that each of them sees.
  Range all(Range rows) const {
    return {std::clamp<Index>(rows.end - 1 - high, 0, moving.len),
            std::clamp<Index>(rows.begin + 1 - low, 0, moving.len)};
  }
};

void check_slice(const AttentionSlice& s, const ScheduleShape& shape) {
  FARSPAN_CHECK(s.q_begin >= 0 && s.q_len >= 0 && s.q_begin + s.q_len <= shape.num_q,
                "slice rows [{}, +{}) of {}", s.q_begin, s.q_len, shape.num_q);
  FARSPAN_CHECK(s.k_begin >= 0 && s.k_len >= 0 && s.k_begin + s.k_len <= shape.num_k,
                "slice keys [{}, +{}) of {}", s.k_begin, s.k_len, shape.num_k);
  FARSPAN_CHECK(s.kv_heads.begin >= 0, "slice for KV heads [{}, {})", s.kv_heads.begin,
                s.kv_heads.end);
}

// Everything of a SliceItem but its tiles. delta = i - j + diagonal, so delta >= 0 is i - j >=
// -diagonal, and so on. Distances lie strictly within the rows: bounds beyond them say nothing.
SliceItem item_of(const AttentionSlice& s, const ScheduleShape& shape, Index index) {
  const bool causal = s.kind == MaskKind::kCausal || s.kind == MaskKind::kBand;
  const bool windowed = s.kind == MaskKind::kInverseCausal || s.kind == MaskKind::kBand;
  const auto bounded = [](Index x) {
    return static_cast<std::int32_t>(std::clamp(x, -kMostRows, kMostRows));
  };
  return {
      .q_begin = static_cast<std::int32_t>(s.q_begin),
      .q_len = static_cast<std::int32_t>(s.q_len),
      .k_begin = static_cast<std::int32_t>(s.k_begin),
      .k_len = static_cast<std::int32_t>(s.k_len),
      .min_distance = bounded(causal ? -s.diagonal : -kMostRows),
      .max_distance = bounded(windowed ? s.window - 1 - s.diagonal : kMostRows),
      .head_begin = s.kv_heads.begin,
      .head_end = static_cast<std::int32_t>(std::min<Index>(s.kv_heads.end, shape.num_kv_heads)),
      .position_diagonal = s.position_diagonal,
      .slice = static_cast<std::int32_t>(index)};
}

View view_of(const SliceItem& item, Stationary stationary) {
  const Side q{item.q_begin, item.q_len}, k{item.k_begin, item.k_len};
  if (stationary == Stationary::kQueries) return {q, k, item.min_distance, item.max_distance};
  return {k, q, -Index{item.max_distance}, -Index{item.min_distance}};
}

// Sets the item's moving tiles for stationary tile `tile`; false where there are none.
bool set_tiles(const View& view, Index tile, const ScheduleShape& shape, Index num_rows,
               SliceItem& item) {
  const Index first = tile * shape.tile, end = std::min<Index>(first + shape.tile, num_rows);
  const Range rows = {
      std::max(first, view.stationary.begin) - view.stationary.begin,
      std::min(end, view.stationary.begin + view.stationary.len) - view.stationary.begin};
  const Range any = view.any(rows), all = view.all(rows);
  if (rows.length() == 0 || any.length() == 0) return false;
  const Index unit = shape.moving_tile;
  const Range tiles = {any.begin / unit, ceil_div(any.end, unit)};
  Range full = {tiles.begin, tiles.begin};
  if (rows.length() == end - first && all.length() > 0)
    full = {ceil_div(all.begin, unit), all.end / unit};
  if (full.length() == 0) full = {tiles.begin, tiles.begin};
  item.begin = static_cast<std::int32_t>(tiles.begin);
  item.end = static_cast<std::int32_t>(tiles.end);
  item.full_begin = static_cast<std::int32_t>(full.begin);
  item.full_end = static_cast<std::int32_t>(full.end);
  return true;
}

}  // namespace

SliceSchedule build_schedule(std::span<const AttentionSlice> slices, const ScheduleShape& shape) {
  FARSPAN_CHECK(shape.tile > 0 && shape.moving_tile > 0, "tiles of {} x {}", shape.tile,
                shape.moving_tile);
  FARSPAN_CHECK(shape.num_q <= kMostRows && shape.num_k <= kMostRows,
                "attention of {} queries and {} keys in one call", shape.num_q, shape.num_k);
  const bool by_query = shape.stationary == Stationary::kQueries;
  const Index num_rows = by_query ? shape.num_q : shape.num_k;
  const Index num_tiles = ceil_div(num_rows, shape.tile);

  // Tile after tile would look at every slice for each: count first, then fill.
  struct Met {
    Index tile;
    SliceItem item;
  };
  std::vector<Met> met;
  std::vector<std::int32_t> next(static_cast<std::size_t>(num_tiles) + 1, 0);
  for (std::size_t i = 0; i < slices.size(); ++i) {
    check_slice(slices[i], shape);
    SliceItem item = item_of(slices[i], shape, static_cast<Index>(i));
    if (item.head_begin >= item.head_end || item.min_distance > item.max_distance) continue;
    const View view = view_of(item, shape.stationary);
    const Index end = view.stationary.begin + view.stationary.len;
    for (Index tile = view.stationary.begin / shape.tile; tile * shape.tile < end; ++tile)
      if (set_tiles(view, tile, shape, num_rows, item)) {
        met.push_back({tile, item});
        ++next[static_cast<std::size_t>(tile) + 1];
      }
  }
  std::partial_sum(next.begin(), next.end(), next.begin());

  SliceSchedule schedule;
  schedule.tiles.resize(static_cast<std::size_t>(num_tiles));
  schedule.items.resize(met.size());
  std::vector<Index> work(static_cast<std::size_t>(num_tiles), 0);
  for (std::size_t t = 0; t < schedule.tiles.size(); ++t)
    schedule.tiles[t] = {.row_begin = static_cast<std::int32_t>(static_cast<Index>(t) * shape.tile),
                         .item_begin = next[t],
                         .item_end = next[t + 1],
                         .moving_tiles = 0};
  for (const Met& m : met) {
    const auto t = static_cast<std::size_t>(m.tile);
    schedule.items[static_cast<std::size_t>(next[t]++)] = m.item;
    schedule.tiles[t].moving_tiles += m.item.end - m.item.begin;
    work[t] += Index{m.item.end - m.item.begin} * (m.item.head_end - m.item.head_begin);
  }
  std::stable_sort(schedule.tiles.begin(), schedule.tiles.end(),
                   [&](const StationaryTile& a, const StationaryTile& b) {
                     return work[static_cast<std::size_t>(a.row_begin / shape.tile)] >
                            work[static_cast<std::size_t>(b.row_begin / shape.tile)];
                   });
  return schedule;
}

}  // namespace farspan::cuda
