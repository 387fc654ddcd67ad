// Pieces of the flash attention backward kernels on tensor cores. One kernel, two sides: a block
// keeps a tile of its own rows (queries, or keys of one head) and the other side's rows move past
// it, tile by tile, as its work list names them (slice_schedule.h).
//
//   own keys:     S^T = K Q^T   dP^T = V dO^T   dK += dS^T Q   dV += P^T dO
//   own queries:  S = Q K^T     dP = dO V^T     dQ += dS K
//
// A warp computes S and dP of its own rows for a part of the moving rows and hands P and dS, in
// bf16, to the warps that share its own rows through shared memory; then it sums all moving rows
// for a part of the dims. So each fragment that is read from shared memory serves two products and
// sums of 32 rows fit the registers.
//
// Legend: lane l holds, of each 16 x 8 product tile, rows g = l / 4 and g + 8, columns 2 t and
// 2 t + 1, t = l % 4 (ptx.cuh). Rows of tiles lie in shared memory one after the other, their
// chunks of 16 bytes permuted so that the 8 rows of a matrix lie in 8 groups of banks.
#pragma once

#include "kernels/cuda/attention/backward_call.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"

namespace farspan::cuda {

constexpr float kLog2E = 1.4426950408889634f;

template <int kPaddedDim>
struct BackwardTraits {
  static constexpr int kDim = kPaddedDim;
  static constexpr int kOwn = backward_own_rows(kDim);        // rows of a block
  static constexpr int kMoving = backward_moving_rows(kDim);  // rows of a moving tile
  static constexpr int kRowTiles = 2;                         // of 16 rows, of a warp
  static constexpr int kRowWarps = kOwn / (16 * kRowTiles);   // warps with different rows
  static constexpr int kDimWarps = kDim == 64 ? 1 : (kDim == 256 ? 4 : 2);  // with the same rows
  static constexpr int kWarps = kRowWarps * kDimWarps;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kBlocksPerSm = kWarps > 4 ? 1 : 2;
  static constexpr int kScoreTiles = kMoving / 8 / kDimWarps;  // of S, of a warp
  static constexpr int kDimTiles = kDim / 8 / kDimWarps;       // of sums, of a warp
  static_assert(kScoreTiles % 2 == 0 && kDimTiles % 2 == 0);
};

// Where element (row, 8 chunk) of a tile of kWidth columns lies.
template <int kWidth>
__device__ __forceinline__ int swizzle(int row) {
  static_assert(kWidth % 32 == 0);
  return kWidth % 64 == 0 ? row & 7 : (row >> 1) & 3;
}
template <int kWidth>
__device__ __forceinline__ int element_at(int row, int chunk) {
  return row * kWidth + ((chunk ^ swizzle<kWidth>(row)) << 3);
}

// This lane's address in the matrices of ldmatrix, for fragments of 16 rows and 16 columns.
template <int kWidth>
struct FragmentRows {
  int base, chunk;
  // `first` is a multiple of 8.
  __device__ __forceinline__ FragmentRows(int first, int row, int half)
      : base((first + row) * kWidth), chunk(half ^ swizzle<kWidth>(row)) {}
  // Of the fragment `rows` (a multiple of 8) further down, whose first column is 8 even_chunk.
  __device__ __forceinline__ int at(int rows, int even_chunk) const {
    return base + rows * kWidth + ((chunk ^ even_chunk) << 3);
  }
};

// Operand A by rows, or operand B from a matrix whose rows are its depth (with _trans).
template <int kWidth>
__device__ __forceinline__ FragmentRows<kWidth> upright(int first) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  return {first, lane % 16, lane / 16};
}
// Operand B from a matrix whose columns are its depth, or operand A from one whose rows are (with
// _trans).
template <int kWidth>
__device__ __forceinline__ FragmentRows<kWidth> crossed(int first) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  return {first, lane / 16 * 8 + lane % 8, lane / 8 % 2};
}

// Starts copying rows [0, count) of `from`, `stride` elements apart, and zeros for the rest of
// kRows rows and for dims from head_dim on. `shown`, if given: which rows may be read.
template <class T, int kRows>
__device__ __forceinline__ void load_rows(bf16* to, const bf16* from, int stride, int count,
                                          int head_dim, const bool* shown = nullptr) {
  constexpr int kChunks = T::kDim / 8;
  static_assert(kRows * kChunks % T::kThreads == 0);
#pragma unroll
  for (int i = 0; i < kRows * kChunks / T::kThreads; ++i) {
    const int n = static_cast<int>(threadIdx.x) + i * T::kThreads;
    const int row = n / kChunks, chunk = n % kChunks;
    const bool valid = row < count && chunk * 8 < head_dim && (shown == nullptr || shown[row]);
    cp_async_16(to + element_at<T::kDim>(row, chunk),
                valid ? from + static_cast<std::int64_t>(row) * stride + chunk * 8 : from, valid);
  }
}

template <int kRows, int kColumns>
__device__ __forceinline__ void clear(float (&x)[kRows][kColumns][4]) {
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int n = 0; n < kColumns; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) x[r][n][e] = 0.0f;
}

// c = own moving^T over all dims: this warp's own rows, its part of the moving rows.
template <class T>
__device__ __forceinline__ void multiply_rows(float (&c)[T::kRowTiles][T::kScoreTiles][4],
                                              const bf16* own, const bf16* moving,
                                              const FragmentRows<T::kDim>& own_rows,
                                              const FragmentRows<T::kDim>& moving_rows) {
  clear(c);
#pragma unroll 2
  for (int k = 0; k < T::kDim / 16; ++k) {
    std::uint32_t a[T::kRowTiles][4];
#pragma unroll
    for (int r = 0; r < T::kRowTiles; ++r) ldmatrix_x4(a[r], own + own_rows.at(r * 16, k * 2));
#pragma unroll
    for (int n = 0; n < T::kScoreTiles; n += 2) {
      std::uint32_t b[4];
      ldmatrix_x4(b, moving + moving_rows.at(n * 8, k * 2));
#pragma unroll
      for (int r = 0; r < T::kRowTiles; ++r) {
        mma_bf16_16816(c[r][n], a[r], b[0], b[1]);
        mma_bf16_16816(c[r][n + 1], a[r], b[2], b[3]);
      }
    }
  }
}

// sums += weights moving: this warp's own rows, its part of the dims (from chunk `dim_chunk` on).
template <class T>
__device__ __forceinline__ void add_weighted_rows(float (&sums)[T::kRowTiles][T::kDimTiles][4],
                                                  const bf16* weights, const bf16* moving,
                                                  const FragmentRows<T::kMoving>& own_rows,
                                                  const FragmentRows<T::kDim>& depth_rows,
                                                  int dim_chunk) {
#pragma unroll
  for (int k = 0; k < T::kMoving / 16; ++k) {
    std::uint32_t a[T::kRowTiles][4];
#pragma unroll
    for (int r = 0; r < T::kRowTiles; ++r) ldmatrix_x4(a[r], weights + own_rows.at(r * 16, k * 2));
#pragma unroll
    for (int n = 0; n < T::kDimTiles; n += 2) {
      std::uint32_t b[4];
      ldmatrix_x4_trans(b, moving + depth_rows.at(k * 16, dim_chunk + n));
#pragma unroll
      for (int r = 0; r < T::kRowTiles; ++r) {
        mma_bf16_16816(sums[r][n], a[r], b[0], b[1]);
        mma_bf16_16816(sums[r][n + 1], a[r], b[2], b[3]);
      }
    }
  }
}

// weights[own row][moving row] = c in bf16, for the other warps. `row`: this lane's first own row.
template <class T>
__device__ __forceinline__ void hand_over(bf16* weights,
                                          const float (&c)[T::kRowTiles][T::kScoreTiles][4],
                                          int row, int first_chunk) {
  const int t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int r = 0; r < T::kRowTiles; ++r)
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int n = 0; n < T::kScoreTiles; ++n)
        *reinterpret_cast<std::uint32_t*>(
            weights + element_at<T::kMoving>(row + r * 16 + half * 8, first_chunk + n) + 2 * t) =
            pack_bf16(c[r][n][half * 2], c[r][n][half * 2 + 1]);
}

// to += factor * sums. to: this lane's first own row and dim; `rows` of them and `dims` are there.
template <class T>
__device__ __forceinline__ void add_to_gradient(float* to,
                                                const float (&sums)[T::kRowTiles][T::kDimTiles][4],
                                                float factor, std::int64_t stride, int rows,
                                                int dims) {
#pragma unroll
  for (int r = 0; r < T::kRowTiles; ++r)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (r * 16 + half * 8 >= rows) continue;
      float* row = to + (r * 16 + half * 8) * stride;
      float2 before[T::kDimTiles];
#pragma unroll
      for (int n = 0; n < T::kDimTiles; ++n)
        before[n] =
            n * 8 < dims ? *reinterpret_cast<const float2*>(row + n * 8) : make_float2(0.0f, 0.0f);
#pragma unroll
      for (int n = 0; n < T::kDimTiles; ++n)
        if (n * 8 < dims)
          *reinterpret_cast<float2*>(row + n * 8) =
              make_float2(fmaf(sums[r][n][half * 2], factor, before[n].x),
                          fmaf(sums[r][n][half * 2 + 1], factor, before[n].y));
    }
}

// One tile of moving rows, of one slice and one query head.
struct BackwardStep {
  int item;  // past the last item: no more
  int head;
  int index;  // counted from the slice's first moving row
};

// The block's walk over its steps: slices in order, heads ascending, tiles ascending. Slices for
// other KV heads are passed over.
struct BackwardWalk {
  const SliceItem* items;
  int item_begin, item_end;
  int kv_head;
  int head_begin, head_end;  // query heads

  __device__ __forceinline__ BackwardStep first_from(int item) const {
    for (; item < item_end; ++item) {
      const SliceItem& s = items[item];
      if (kv_head >= s.head_begin && kv_head < s.head_end) return {item, head_begin, s.begin};
    }
    return {item_end, 0, 0};
  }
  __device__ __forceinline__ BackwardStep after(const BackwardStep& step) const {
    const SliceItem& s = items[step.item];
    if (step.index + 1 < s.end) return {step.item, step.head, step.index + 1};
    if (step.head + 1 < head_end) return {step.item, step.head + 1, s.begin};
    return first_from(step.item + 1);
  }
  __device__ __forceinline__ bool done(const BackwardStep& step) const {
    return step.item >= item_end;
  }
};

// The key from which the distances of query i of a slice count under ALiBi: of those that it sees
// the one with the largest bias.
__device__ __forceinline__ int reference_key(const SliceItem& s, int i, float slope) {
  return slope >= 0 ? min(s.k_len - 1, i - s.min_distance) : max(0, i - s.max_distance);
}

// What query i adds to its scores, in base 2: -L, or with a slope -(L + slope p), p being the
// distance to its reference key; formed in f64. -inf, so P = 0, for a row that saw no key.
__device__ __forceinline__ float minus_lse_of(float lse) {
  return lse == -INFINITY ? lse : -lse * kLog2E;
}
__device__ __forceinline__ float minus_lse_of(float lse, const SliceItem& s, int i, float slope,
                                              std::int64_t stride) {
  if (lse == -INFINITY) return lse;
  constexpr double kLog2EInDouble = 1.4426950408889634;
  const std::int64_t p =
      (static_cast<std::int64_t>(i) - reference_key(s, i, slope)) * stride + s.position_diagonal;
  return static_cast<float>(
      -kLog2EInDouble *
      (static_cast<double>(lse) + static_cast<double>(slope) * static_cast<double>(p)));
}

}  // namespace farspan::cuda
