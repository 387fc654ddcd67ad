// Pieces of the backward kernels that depend on the side that a block keeps (backward_kernel.cuh).
#pragma once

#include "kernels/cuda/attention/backward_kernel.cuh"

namespace farspan::cuda {

template <class T, BackwardPart kPart>
struct BackwardShared {
  static constexpr bool kByKeys = kPart != BackwardPart::kQueries;
  static constexpr int kStages =
      T::kDim == 256 ? 1 : 2;  // of moving tiles; 163 KiB is sm_80's most
  static constexpr int kOwnElements = T::kOwn * T::kDim;
  static constexpr int kMovingElements = T::kMoving * T::kDim;
  static constexpr int kWeights = T::kOwn * T::kMoving;

  bf16* own[2];     // K and V, or Q and dO
  bf16* moving;     // of each stage: Q and dO, or K and V
  bf16 *ds, *p;     // [own row][moving row]; p with own keys
  float* of_query;  // [2][3][kMoving], with own keys: -L, delta, reference key

  static constexpr std::size_t kBytes =
      sizeof(bf16) *
          (2 * kOwnElements + 2 * kStages * kMovingElements + (kByKeys ? 2 : 1) * kWeights) +
      (kByKeys ? sizeof(float) * 6 * T::kMoving : 0);
  static_assert(kBytes <= 163 << 10);

  __device__ __forceinline__ BackwardShared() {
    own[0] = shared_memory<bf16>();
    own[1] = own[0] + kOwnElements;
    moving = own[1] + kOwnElements;
    ds = moving + 2 * kStages * kMovingElements;
    p = ds + kWeights;
    of_query = reinterpret_cast<float*>(p + kWeights);
  }
  // Matrix 0 or 1 of step n's tile.
  __device__ __forceinline__ bf16* tile(int n, int matrix) const {
    return moving + (n % kStages * 2 + matrix) * kMovingElements;
  }
  __device__ __forceinline__ float* stats(int n, int kind) const {
    return of_query + (n % 2 * 3 + kind) * T::kMoving;
  }
};

// Both sides of a block: which tensors it keeps and which move.
struct BackwardSides {
  const bf16 *own[2], *moving[2];
  int own_heads, moving_heads;
};
template <BackwardPart kPart>
__device__ __forceinline__ BackwardSides sides_of(const BackwardCall& call) {
  if constexpr (kPart == BackwardPart::kQueries)
    return {{call.q, call.dout}, {call.k, call.v}, call.num_q_heads, call.num_kv_heads};
  else
    return {{call.k, call.v}, {call.q, call.dout}, call.num_kv_heads, call.num_q_heads};
}

// Where this thread stands in its block.
template <class T>
struct BackwardLane {
  int lane, row_warp, dim_warp;
  int row;        // its first own row
  int moving;     // its first moving row of S
  int dim_chunk;  // the warp's first dims of sums, in chunks of 8

  __device__ __forceinline__ BackwardLane() {
    const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
    lane = thread % 32;
    row_warp = warp / T::kDimWarps;
    dim_warp = warp % T::kDimWarps;
    row = first_row() + lane / 4;
    moving = dim_warp * T::kScoreTiles * 8 + lane % 4 * 2;
    dim_chunk = dim_warp * T::kDimTiles;
  }
  __device__ __forceinline__ int first_row() const { return row_warp * T::kRowTiles * 16; }
};

// Rows of the moving side that an own row sees, counted from this lane's first column: [first,
// last], empty where first > last. `own`: from the slice's corner; `moving`: what the lane's first
// column is from there.
template <bool kByKeys>
struct SeenRows {
  int first, last;
  __device__ __forceinline__ SeenRows(const SliceItem& s, int own, int moving) {
    if constexpr (kByKeys) {
      first = max(0, own + s.min_distance) - moving;
      last = own < 0 || own >= s.k_len ? -1 : min(s.q_len - 1, own + s.max_distance) - moving;
    } else {
      first = max(0, own - s.max_distance) - moving;
      last = own < 0 || own >= s.q_len ? -1 : min(s.k_len - 1, own - s.min_distance) - moving;
    }
  }
  __device__ __forceinline__ bool hides(int column) const {
    return column < first || column > last;
  }
};

// 0 for what the slice hides.
template <class T, bool kByKeys>
__device__ __forceinline__ void hide(float (&p)[T::kRowTiles][T::kScoreTiles][4],
                                     const SliceItem& s, int own, int moving) {
#pragma unroll
  for (int r = 0; r < T::kRowTiles; ++r)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const SeenRows<kByKeys> seen(s, own + r * 16 + half * 8, moving);
#pragma unroll
      for (int n = 0; n < T::kScoreTiles; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          if (seen.hides(n * 8 + e)) p[r][n][half * 2 + e] = 0.0f;
    }
}

// What the probabilities of this lane's own queries need.
template <class T, bool kBias>
class OwnQueries {
 public:
  // row: this lane's first, in the call.
  __device__ __forceinline__ void read(const BackwardCall& call, int head, std::int64_t row) {
#pragma unroll
    for (int r = 0; r < T::kRowTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::int64_t at = row + r * 16 + half * 8;
        const bool there = at < call.num_q;
        const std::int64_t stat = static_cast<std::int64_t>(head) * call.num_q + at;
        lse_[r][half] = there ? call.lse[stat] : -INFINITY;
        delta_[r][half] = there ? call.delta[stat] : 0.0f;
        minus_lse_[r][half] = minus_lse_of(lse_[r][half]);
      }
  }

  // For a new item. i: this lane's first row from the item's corner.
  __device__ __forceinline__ void enter(const SliceItem& s, int i, float slope,
                                        std::int64_t stride) {
#pragma unroll
    for (int r = 0; r < T::kRowTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = i + r * 16 + half * 8;
        minus_lse_[r][half] = minus_lse_of(lse_[r][half], s, row, slope, stride);
        reference_[r][half] = reference_key(s, row, slope);
      }
  }

  // S becomes P. key: this lane's first column from the item's corner.
  __device__ __forceinline__ void exponentiate(float (&s)[T::kRowTiles][T::kScoreTiles][4],
                                               float scale2, float slope_step, int key) const {
#pragma unroll
    for (int r = 0; r < T::kRowTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float from = kBias ? static_cast<float>(key - reference_[r][half]) : 0.0f;
#pragma unroll
        for (int n = 0; n < T::kScoreTiles; ++n)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& x = s[r][n][half * 2 + e];
            x = fmaf(x, scale2, minus_lse_[r][half]);
            if constexpr (kBias) x = fmaf(slope_step, from + static_cast<float>(n * 8 + e), x);
            x = exp2_approx(x);
          }
      }
  }

  // dP becomes dS.
  __device__ __forceinline__ void differentiate(
      float (&dp)[T::kRowTiles][T::kScoreTiles][4],
      const float (&p)[T::kRowTiles][T::kScoreTiles][4]) const {
#pragma unroll
    for (int r = 0; r < T::kRowTiles; ++r)
#pragma unroll
      for (int n = 0; n < T::kScoreTiles; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) dp[r][n][e] = p[r][n][e] * (dp[r][n][e] - delta_[r][e / 2]);
  }

 private:
  float lse_[T::kRowTiles][2], delta_[T::kRowTiles][2], minus_lse_[T::kRowTiles][2];
  int reference_[T::kRowTiles][2];
};

// The same of the queries of a moving tile: read by one thread each while the tile before is at
// work, then kept in shared memory.
template <class T, bool kBias>
class MovingQueries {
 public:
  // For the step to come; i: its first query from the item's corner.
  __device__ __forceinline__ void read(const BackwardCall& call, const SliceItem& s, int head,
                                       int i) {
    const int row = i + static_cast<int>(threadIdx.x);
    const bool there = static_cast<int>(threadIdx.x) < T::kMoving && row < s.q_len;
    const std::int64_t stat = static_cast<std::int64_t>(head) * call.num_q + s.q_begin + row;
    lse_ = there ? call.lse[stat] : -INFINITY;
    delta_ = there ? call.delta[stat] : 0.0f;
    if constexpr (kBias) slope_ = call.slopes[head];
  }
  // key: the block's first one from the item's corner, of which distances count in `stats`.
  __device__ __forceinline__ void write(float* minus_lse, float* delta, float* reference,
                                        const SliceItem& s, int i, int key,
                                        std::int64_t stride) const {
    const int at = static_cast<int>(threadIdx.x);
    if (at >= T::kMoving) return;
    delta[at] = delta_;
    if constexpr (kBias) {
      minus_lse[at] = minus_lse_of(lse_, s, i + at, slope_, stride);
      reference[at] = static_cast<float>(reference_key(s, i + at, slope_) - key);
    } else {
      minus_lse[at] = minus_lse_of(lse_);
    }
  }
  __device__ __forceinline__ float slope() const { return slope_; }

  // S^T becomes P^T. The pointers are at this lane's first column; row: its first own one.
  static __device__ __forceinline__ void exponentiate(float (&s)[T::kRowTiles][T::kScoreTiles][4],
                                                      const float* minus_lse,
                                                      const float* reference, float scale2,
                                                      float slope_step, int row) {
#pragma unroll
    for (int n = 0; n < T::kScoreTiles; ++n) {
      const float2 shift = *reinterpret_cast<const float2*>(minus_lse + n * 8);
      const float2 from = kBias ? *reinterpret_cast<const float2*>(reference + n * 8) : shift;
#pragma unroll
      for (int r = 0; r < T::kRowTiles; ++r)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float& x = s[r][n][e];
          x = fmaf(x, scale2, e % 2 == 0 ? shift.x : shift.y);
          if constexpr (kBias) {
            const auto key = static_cast<float>(row + r * 16 + e / 2 * 8);
            x = fmaf(slope_step, key - (e % 2 == 0 ? from.x : from.y), x);
          }
          x = exp2_approx(x);
        }
    }
  }

  // dP^T becomes dS^T.
  static __device__ __forceinline__ void differentiate(
      float (&dp)[T::kRowTiles][T::kScoreTiles][4],
      const float (&p)[T::kRowTiles][T::kScoreTiles][4], const float* delta) {
#pragma unroll
    for (int n = 0; n < T::kScoreTiles; ++n) {
      const float2 d = *reinterpret_cast<const float2*>(delta + n * 8);
#pragma unroll
      for (int r = 0; r < T::kRowTiles; ++r)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          dp[r][n][e] = p[r][n][e] * (dp[r][n][e] - (e % 2 == 0 ? d.x : d.y));
    }
  }

 private:
  float lse_ = 0, delta_ = 0, slope_ = 0;
};

// 0 where P is: what hides a score must hide a NaN of dP as well.
template <class T>
__device__ __forceinline__ void hide_like(float (&ds)[T::kRowTiles][T::kScoreTiles][4],
                                          const float (&p)[T::kRowTiles][T::kScoreTiles][4]) {
#pragma unroll
  for (int r = 0; r < T::kRowTiles; ++r)
#pragma unroll
    for (int n = 0; n < T::kScoreTiles; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (p[r][n][e] == 0.0f) ds[r][n][e] = 0.0f;
}

// How the warps of a block share dQ of a moving tile, each a few rows and dims of it.
template <class T>
struct AtomicTraits {
  static constexpr int kRowWarps = T::kDim == 64 ? 1 : (T::kDim == 96 ? 4 : 2);
  static constexpr int kRowTiles = T::kMoving / 16 / kRowWarps;
  static constexpr int kDimTiles = T::kDim / 8 * kRowWarps / T::kWarps;
  static_assert(kDimTiles % 2 == 0);
};

// dq += scale dS K of the moving tile, atomically. dq: the tile's first row of the head; `count` of
// its rows are there.
template <class T>
__device__ __forceinline__ void add_dq(float* dq, const bf16* ds, const bf16* keys, float scale,
                                       std::int64_t stride, int count, int head_dim) {
  using A = AtomicTraits<T>;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int first_tile = warp % A::kRowWarps * A::kRowTiles;
  const int dim_chunk = warp / A::kRowWarps * A::kDimTiles;
  const FragmentRows<T::kMoving> weights = crossed<T::kMoving>(0);
  const FragmentRows<T::kDim> depth = upright<T::kDim>(0);
  float sums[A::kRowTiles][A::kDimTiles][4];
  clear(sums);
#pragma unroll 4
  for (int k = 0; k < T::kOwn / 16; ++k) {
    std::uint32_t a[A::kRowTiles][4];
#pragma unroll
    for (int r = 0; r < A::kRowTiles; ++r)
      ldmatrix_x4_trans(a[r], ds + weights.at(k * 16, (first_tile + r) * 2));
#pragma unroll
    for (int n = 0; n < A::kDimTiles; n += 2) {
      std::uint32_t b[4];
      ldmatrix_x4_trans(b, keys + depth.at(k * 16, dim_chunk + n));
#pragma unroll
      for (int r = 0; r < A::kRowTiles; ++r) {
        mma_bf16_16816(sums[r][n], a[r], b[0], b[1]);
        mma_bf16_16816(sums[r][n + 1], a[r], b[2], b[3]);
      }
    }
  }
  // Neighbouring lanes swap halves: each then has four dims of one row.
  const bool odd = lane % 2 == 1;
  const int column = lane % 4 / 2 * 4;
#pragma unroll
  for (int r = 0; r < A::kRowTiles; ++r)
#pragma unroll
    for (int n = 0; n < A::kDimTiles; ++n) {
      float(&c)[4] = sums[r][n];
      const float x = __shfl_xor_sync(0xffffffffu, odd ? c[0] : c[2], 1);
      const float y = __shfl_xor_sync(0xffffffffu, odd ? c[1] : c[3], 1);
      const int row = (first_tile + r) * 16 + lane / 4 + (odd ? 8 : 0);
      const int dim = (dim_chunk + n) * 8 + column;
      if (row >= count || dim >= head_dim) continue;
      float* to = dq + row * stride + dim;
      if (odd)
        red_add_f32x4(to, x * scale, y * scale, c[2] * scale, c[3] * scale);
      else
        red_add_f32x4(to, c[0] * scale, c[1] * scale, x * scale, y * scale);
    }
}

}  // namespace farspan::cuda
