// Which tiles of keys meet which tiles of queries: the work lists of the CUDA attention kernels,
// forward and backward. Plain C++, a pure function of its arguments.
//
//   const SliceSchedule s = build_schedule(slices, {.stationary = Stationary::kQueries,
//       .num_q = 4096, .num_k = 8192, .num_kv_heads = 8, .tile = 128, .moving_tile = 64});
//   for (const StationaryTile& t : s.tiles)          // a block takes one tile and one head
//     for (int i = t.item_begin; i < t.item_end; ++i) ... s.items[i] ...
//
// The stationary side (queries in a kernel that sums over keys, keys in one that sums over queries)
// is cut at multiples of `tile` rows of its tensor. The moving side is cut per slice, counted from
// the slice's corner: tile t holds rows [t * moving_tile, (t + 1) * moving_tile) of the slice. What
// a stationary row meets, and in which groups, therefore depends on the slices that show it
// something and on their order alone, never on where the slices lie on the moving side
// (AttentionForwardArgs::invariant).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/args.h"

namespace farspan::cuda {

enum class Stationary : std::uint8_t { kQueries, kKeys };

struct ScheduleShape {
  Stationary stationary = Stationary::kQueries;
  std::int64_t num_q = 0, num_k = 0, num_kv_heads = 1;  // of the call
  int tile = 0, moving_tile = 0;                        // rows
  friend bool operator==(const ScheduleShape&, const ScheduleShape&) = default;
};

// One slice as one stationary tile meets it. Element (i, j), counted from the slice's corner
// (q_begin, k_begin), is visible iff min_distance <= i - j <= max_distance, to KV heads
// [head_begin, head_end). 64 bytes, read by kernels as they stand.
struct SliceItem {
  std::int32_t q_begin, q_len, k_begin, k_len;
  std::int32_t min_distance, max_distance;
  std::int32_t head_begin, head_end;
  std::int64_t position_diagonal;
  // Moving tiles that show anything to this stationary tile.
  std::int32_t begin, end;
  // Those among them that need no test: whole inside the slice, every pair visible, for all rows of
  // the stationary tile that exist (rows past the tensor's end count as shown: they are read as
  // zeros and never stored). begin <= full_begin <= full_end <= end.
  std::int32_t full_begin, full_end;
  std::int32_t slice;  // index in the call's slices
  std::int32_t unused = 0;
};
static_assert(sizeof(SliceItem) == 64);

// Rows [row_begin, row_begin + tile) of the stationary side, cut at the tensor's end, and items
// [item_begin, item_end), in the order of slices. 16 bytes.
struct StationaryTile {
  std::int32_t row_begin;
  std::int32_t item_begin, item_end;
  std::int32_t moving_tiles;  // of all items together
};
static_assert(sizeof(StationaryTile) == 16);

struct SliceSchedule {
  // Every stationary tile once, those with the most work first: the last blocks to start are short
  // ones. Tiles without items come last.
  std::vector<StationaryTile> tiles;
  std::vector<SliceItem> items;
};

// CHECKs that slices lie within the call, and that its rows fit 30 bits.
SliceSchedule build_schedule(std::span<const AttentionSlice> slices, const ScheduleShape& shape);

}  // namespace farspan::cuda
