// Flash attention forward on tensor cores: one block for 128 queries of one head, which walks over
// the tiles of keys that its work list names (slice_schedule.h). README.md of this folder has the
// design.
//
// Legend: lane l of a warp holds, of each 16 x 8 product tile, rows g = l / 4 and g + 8, columns
// 2 t and 2 t + 1, t = l % 4 (ptx.cuh). "Row" is a query, "key" a key of the block of K and V.
#pragma once

#include "kernels/cuda/attention/forward_call.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"

namespace farspan::cuda {

constexpr double kLog2E = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;

template <int kDim>
struct ForwardTraits {
  static constexpr int kRows = kForwardRows;
  static constexpr int kKeys = forward_keys(kDim);
  // 32 rows to a warp let each fragment of K and V serve two products: shared memory could not feed
  // the tensor cores otherwise. At 256 the accumulators leave room for 16.
  static constexpr int kWarps = kDim > 128 ? 8 : 4;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kRowTiles = kRows / (16 * kWarps);
  static constexpr int kBlocksPerSm = kDim > 128 ? 1 : 2;
  // 16 bytes more than a row: the 8 rows of a matrix then lie in 8 different groups of 4 banks.
  static constexpr int kPitch = kDim + 8;
  static constexpr int kChunks = kDim / 8;  // of 16 bytes, in a row
  static constexpr int kSharedElements = (kRows + 2 * kKeys) * kPitch;
  static constexpr std::size_t kMaxAt = sizeof(bf16) * kSharedElements;  // of the rows' maxima
  static_assert(kMaxAt % sizeof(double) == 0);

  static constexpr std::size_t shared_bytes(bool bias) {
    return kMaxAt + (bias ? kRows * sizeof(double) : 0);
  }
};

// Starts copying rows [0, count) of `from`, `stride` elements apart, and zeros for the rest of
// kRowsOfTile rows and for dims from head_dim on.
template <int kDim, int kRowsOfTile>
__device__ __forceinline__ void load_tile(bf16* to, const bf16* from, int stride, int count,
                                          int head_dim) {
  using T = ForwardTraits<kDim>;
  const auto thread = static_cast<int>(threadIdx.x);
  static_assert(kRowsOfTile * T::kChunks % T::kThreads == 0);
  if constexpr (T::kThreads % T::kChunks == 0) {  // a thread stays on its column
    constexpr int kRowsAtOnce = T::kThreads / T::kChunks;
    const int row = thread / T::kChunks, dim = thread % T::kChunks * 8;
    const int left = dim < head_dim ? count - row : 0;
    from += row * stride + dim;
    to += row * T::kPitch + dim;
#pragma unroll
    for (int i = 0; i < kRowsOfTile / kRowsAtOnce; ++i)
      cp_async_16(to + i * kRowsAtOnce * T::kPitch, from + i * kRowsAtOnce * stride,
                  i * kRowsAtOnce < left);
  } else {
#pragma unroll
    for (int i = 0; i < kRowsOfTile * T::kChunks / T::kThreads; ++i) {
      const int chunk = thread + i * T::kThreads;
      const int row = chunk / T::kChunks, dim = chunk % T::kChunks * 8;
      cp_async_16(to + row * T::kPitch + dim, from + row * stride + dim,
                  row < count && dim < head_dim);
    }
  }
}

// One tile of keys of one item of the work list.
struct KeyTile {
  int item;   // past the last item: no more tiles
  int index;  // counted from the slice's first key
};

// The block's walk over its tiles, those of slices for other heads passed over.
struct TileWalk {
  const SliceItem* items;
  int item_end;
  int kv_head;

  __device__ __forceinline__ KeyTile first_from(int item) const {
    for (; item < item_end; ++item) {
      const SliceItem& s = items[item];
      if (kv_head >= s.head_begin && kv_head < s.head_end) return {item, s.begin};
    }
    return {item_end, 0};
  }
  __device__ __forceinline__ KeyTile after(const KeyTile& tile) const {
    if (tile.index + 1 < items[tile.item].end) return {tile.item, tile.index + 1};
    return first_from(tile.item + 1);
  }
  __device__ __forceinline__ bool done(const KeyTile& tile) const { return tile.item >= item_end; }
};

template <int kDim>
__device__ __forceinline__ void load_keys(bf16* to, const bf16* from, const ForwardCall& call,
                                          const TileWalk& walk, const KeyTile& tile) {
  constexpr int kKeys = ForwardTraits<kDim>::kKeys;
  const SliceItem& s = walk.items[tile.item];
  const int begin = tile.index * kKeys;
  const int stride = call.num_kv_heads * call.head_dim;
  const std::int64_t row = static_cast<std::int64_t>(s.k_begin + begin);
  load_tile<kDim, kKeys>(to, from + row * stride + walk.kv_head * call.head_dim, stride,
                         s.k_len - begin, call.head_dim);
}

// s = q k^T of this warp's rows. `queries` and `keys` point at this lane's row of the first
// fragment. Fragments are read one product ahead of their use.
template <int kDim, int kRowTiles, int kKeyTiles>
__device__ __forceinline__ void multiply_keys(float (&s)[kRowTiles][kKeyTiles][4],
                                              const bf16* queries, const bf16* keys) {
  constexpr int kPitch = ForwardTraits<kDim>::kPitch;
  constexpr int kPairs = kKeyTiles / 2, kSteps = kDim / 16;
  static_assert(kPairs % 2 == 0);  // a turn finds b[0] free
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) s[r][n][e] = 0.0f;
  std::uint32_t a[2][kRowTiles][4], b[2][4];
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) ldmatrix_x4(a[0][r], queries + r * 16 * kPitch);
  ldmatrix_x4(b[0], keys);
#pragma unroll
  for (int k = 0; k < kSteps; ++k)
#pragma unroll
    for (int n = 0; n < kPairs; ++n) {
      const bool turn = n + 1 == kPairs;  // to the next 16 dims
      if (!turn) ldmatrix_x4(b[(n + 1) % 2], keys + (n + 1) * 16 * kPitch + k * 16);
      if (turn && k + 1 < kSteps) {
        ldmatrix_x4(b[0], keys + (k + 1) * 16);
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r)
          ldmatrix_x4(a[(k + 1) % 2][r], queries + r * 16 * kPitch + (k + 1) * 16);
      }
      const std::uint32_t(&now)[4] = b[n % 2];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        mma_bf16_16816(s[r][2 * n], a[k % 2][r], now[0], now[1]);
        mma_bf16_16816(s[r][2 * n + 1], a[k % 2][r], now[2], now[3]);
      }
    }
}

// o += p v, p rounded to bf16: what two tiles of s hold is a fragment of p as it stands.
template <int kDim, int kRowTiles, int kKeyTiles>
__device__ __forceinline__ void multiply_values(float (&o)[kRowTiles][kDim / 8][4],
                                                const float (&p)[kRowTiles][kKeyTiles][4],
                                                const bf16* values) {
  constexpr int kPitch = ForwardTraits<kDim>::kPitch;
  constexpr int kPairs = kDim / 16, kSteps = kKeyTiles / 2;
  static_assert(kPairs % 2 == 0);
  std::uint32_t b[2][4];
  ldmatrix_x4_trans(b[0], values);
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    std::uint32_t a[kRowTiles][4];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      const float(&left)[4] = p[r][2 * k];
      const float(&right)[4] = p[r][2 * k + 1];
      a[r][0] = pack_bf16(left[0], left[1]);
      a[r][1] = pack_bf16(left[2], left[3]);
      a[r][2] = pack_bf16(right[0], right[1]);
      a[r][3] = pack_bf16(right[2], right[3]);
    }
#pragma unroll
    for (int n = 0; n < kPairs; ++n) {
      const bool turn = n + 1 == kPairs;  // to the next 16 keys
      if (!turn) ldmatrix_x4_trans(b[(n + 1) % 2], values + k * 16 * kPitch + (n + 1) * 16);
      if (turn && k + 1 < kSteps) ldmatrix_x4_trans(b[0], values + (k + 1) * 16 * kPitch);
      const std::uint32_t(&now)[4] = b[n % 2];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        mma_bf16_16816(o[r][2 * n], a[r], now[0], now[1]);
        mma_bf16_16816(o[r][2 * n + 1], a[r], now[2], now[3]);
      }
    }
  }
}

// Keys of the slice that its row i sees: [first, last], empty where first > last.
struct SeenKeys {
  int first, last;
};
__device__ __forceinline__ SeenKeys seen_by(const SliceItem& s, int i) {
  if (i < 0 || i >= s.q_len) return {0, -1};
  return {max(0, i - s.max_distance), min(s.k_len - 1, i - s.min_distance)};
}

// -inf for what the slice hides. `row`: this lane's first row in the call; `column`: its first
// column in the tile.
template <int kRowTiles, int kKeyTiles>
__device__ __forceinline__ void hide(float (&s)[kRowTiles][kKeyTiles][4], const SliceItem& slice,
                                     int tile_begin, int row, int column) {
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const SeenKeys seen = seen_by(slice, row + r * 16 + half * 8 - slice.q_begin);
      const int first = seen.first - tile_begin - column, last = seen.last - tile_begin - column;
#pragma unroll
      for (int n = 0; n < kKeyTiles; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          if (n * 8 + e < first || n * 8 + e > last) s[r][n][half * 2 + e] = -INFINITY;
    }
}

// ALiBi. Scores of a row are formed from its nearest key on, in exact integers: s2 = s scale_log2 -
// per_key (distance to that key), where what all scores of the row have in common, slope2 times the
// position distance of the nearest key, is kept apart in double (README.md).
struct Alibi {
  float slope = 0;
  float per_key = 0;  // slope log2(e) position_stride

  static __device__ __forceinline__ Alibi of(float slope, std::int64_t position_stride) {
    const double per_position = static_cast<double>(slope) * kLog2E;
    return {slope, static_cast<float>(per_position * static_cast<double>(position_stride))};
  }

  // The key from which row i of the slice counts: the one with the smallest slope p.
  __device__ __forceinline__ int reference(const SliceItem& s, int i) const {
    return slope >= 0.0f ? min(s.k_len - 1, i - s.min_distance) : max(0, i - s.max_distance);
  }
  // What the scores of row i are relative to.
  __device__ __forceinline__ double offset(const SliceItem& s, int i, std::int64_t stride) const {
    const std::int64_t rows = static_cast<std::int64_t>(i) - reference(s, i);
    return static_cast<double>(-slope) * kLog2E *
           static_cast<double>(rows * stride + s.position_diagonal);
  }
};

// s becomes s2 (above).
template <int kRowTiles, int kKeyTiles>
__device__ __forceinline__ void add_bias(float (&s)[kRowTiles][kKeyTiles][4], const Alibi& alibi,
                                         const SliceItem& slice, float scale_log2, int tile_begin,
                                         int row, int column) {
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = row + r * 16 + half * 8 - slice.q_begin;
      const auto from = static_cast<float>(tile_begin + column - alibi.reference(slice, i));
#pragma unroll
      for (int n = 0; n < kKeyTiles; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& x = s[r][n][half * 2 + e];
          x = fmaf(alibi.per_key, from + static_cast<float>(n * 8 + e), x * scale_log2);
        }
    }
}

// State of this lane's rows: m log2(e) relative to the item's offset, and this lane's part of l.
template <int kRowTiles>
struct RowState {
  float max[kRowTiles][2];
  float sum[kRowTiles][2];
};

// s becomes p = 2^(s factor - m'), and o, l are rescaled from m to m'. All factors 1, as is usual
// once a row has met many keys: nothing to rescale.
template <int kDim, int kRowTiles, int kKeyTiles>
__device__ __forceinline__ void take_softmax(float (&s)[kRowTiles][kKeyTiles][4],
                                             float (&o)[kRowTiles][kDim / 8][4],
                                             RowState<kRowTiles>& state, float factor) {
  constexpr unsigned kAll = 0xffffffffu;
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
    float rescale[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float highest = s[r][0][half * 2];
#pragma unroll
      for (int n = 0; n < kKeyTiles; ++n) {
        highest = fmaxf(highest, s[r][n][half * 2]);
        highest = fmaxf(highest, s[r][n][half * 2 + 1]);
      }
      highest = fmaxf(highest, __shfl_xor_sync(kAll, highest, 1));
      highest = fmaxf(highest, __shfl_xor_sync(kAll, highest, 2));
      const float before = state.max[r][half];
      const float after = fmaxf(before, highest * factor);
      // A row that has seen no key yet has nothing to rescale: 0 times 2^-inf.
      rescale[half] = exp2_approx(before - (after == -INFINITY ? 0.0f : after));
      state.max[r][half] = after;
      state.sum[r][half] *= rescale[half];
    }
    if (!__any_sync(kAll, rescale[0] != 1.0f || rescale[1] != 1.0f)) continue;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) o[r][n][e] *= rescale[e / 2];
  }
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float origin = state.max[r][half] == -INFINITY ? 0.0f : state.max[r][half];
      float sum = 0.0f;
#pragma unroll
      for (int n = 0; n < kKeyTiles; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& x = s[r][n][half * 2 + e];
          x = exp2_approx(fmaf(x, factor, -origin));
          sum += x;
        }
      state.sum[r][half] += sum;
    }
}

// A row's maximum in shared memory, in double: m log2(e) itself, which with ALiBi may be a large
// number of which f32 would lose the fraction.
template <int kDim>
class RowMaxima {
 public:
  using T = ForwardTraits<kDim>;

  // row: this lane's first row, of the block. The four lanes of a row hold the same number; the
  // first of them keeps it.
  __device__ __forceinline__ RowMaxima(bf16* shared, int row, int quad)
      : at_(reinterpret_cast<double*>(reinterpret_cast<unsigned char*>(shared) + T::kMaxAt) + row),
        quad_(quad) {}

  __device__ __forceinline__ double get(int r, int half) const { return at_[r * 16 + half * 8]; }
  __device__ __forceinline__ void set(int r, int half, double x) const {
    if (quad_ == 0) at_[r * 16 + half * 8] = x;
  }

  // state.max of an item becomes the maximum itself. One that did not grow stays what it was, to
  // the last bit.
  __device__ __forceinline__ void leave(const RowState<T::kRowTiles>& state, const Alibi& alibi,
                                        const SliceItem& item, int row, std::int64_t stride) const {
    double highest[T::kRowTiles][2];
#pragma unroll
    for (int r = 0; r < T::kRowTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const double offset = alibi.offset(item, row + r * 16 + half * 8 - item.q_begin, stride);
        const double before = get(r, half);
        const bool grown = state.max[r][half] != static_cast<float>(before - offset);
        highest[r][half] = grown ? offset + static_cast<double>(state.max[r][half]) : before;
      }
    __syncwarp();
#pragma unroll
    for (int r = 0; r < T::kRowTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) set(r, half, highest[r][half]);
    __syncwarp();
  }

  __device__ __forceinline__ void enter(RowState<T::kRowTiles>& state, const Alibi& alibi,
                                        const SliceItem& item, int row, std::int64_t stride) const {
#pragma unroll
    for (int r = 0; r < T::kRowTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        state.max[r][half] = static_cast<float>(
            get(r, half) - alibi.offset(item, row + r * 16 + half * 8 - item.q_begin, stride));
  }

 private:
  double* at_;
  int quad_;
};

}  // namespace farspan::cuda
