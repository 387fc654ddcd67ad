// What the kernels of any_shape.h share: staging tiles in shared memory, the two tile products and
// the geometry of slices. Everything here is called by all kThreads threads of a block together.
#pragma once

#include "kernels/cuda/attention/any_shape.h"
#include "kernels/cuda/launch.cuh"

namespace farspan::cuda::any_shape {

inline constexpr int kTile = 64;   // rows of a tile, own and moving
inline constexpr int kDepth = 32;  // dims staged at a time for scores, rows for sums
inline constexpr int kPitch = 68;  // floats of a staged line of kTile: whole float4, few conflicts
inline constexpr int kThreads = 256;  // thread (y, x) of 16 x 16 has rows 4 y.. and columns 4 x..
inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kInfinity = __builtin_huge_valf();

// Sizes and biases of a call.
struct Problem {
  DeviceSchedule schedule;
  std::int32_t num_q, num_k, num_q_heads, num_kv_heads, head_dim;
  float scale;
  const float* slopes;  // (Hq), or null
  const float* decay;   // (D / 2), or null
  std::int64_t position_stride;

  __host__ __device__ int group() const { return num_q_heads / num_kv_heads; }
};

inline Problem problem_of(const Tensor& q, const Tensor& k, float scale, const PositionBias& bias) {
  return {.schedule = {},
          .num_q = static_cast<std::int32_t>(q.shape[0]),
          .num_k = static_cast<std::int32_t>(k.shape[0]),
          .num_q_heads = static_cast<std::int32_t>(q.shape[1]),
          .num_kv_heads = static_cast<std::int32_t>(k.shape[1]),
          .head_dim = static_cast<std::int32_t>(q.shape[2]),
          .scale = scale,
          .slopes = data<const float>(bias.slopes),
          .decay = data<const float>(bias.decay),
          .position_stride = bias.any() ? bias.position_stride : 1};
}

inline ScheduleShape schedule_shape(const Problem& p, Stationary stationary) {
  return {.stationary = stationary,
          .num_q = p.num_q,
          .num_k = p.num_k,
          .num_kv_heads = p.num_kv_heads,
          .tile = kTile,
          .moving_tile = kTile};
}

// Read as float4.
struct alignas(16) Shared {
  float columns[2][kDepth][kPitch];  // of both sides; or kDepth rows of 128 dims
  float weights[kTile][kPitch];      // [moving row][own row]
};
static_assert(sizeof(float[kDepth][128]) <= sizeof(float[2][kDepth][kPitch]));

// The rows of a tile: row r of `count` is at data + r * stride, the rest are zeros.
template <typename T>
struct Rows {
  const T* data;
  std::int64_t stride;
  int count;
};

// Rows [first, first + count) of head `head` of x (T, H, D).
template <typename T>
__device__ Rows<T> rows_of(const T* x, int num_heads, int head_dim, std::int64_t first, int count,
                           int head) {
  const std::int64_t stride = static_cast<std::int64_t>(num_heads) * head_dim;
  return {x + first * stride + static_cast<std::int64_t>(head) * head_dim, stride, count};
}

// What xPos multiplies row r by: 2^(rate[c] p), p = first + (r % period) * step, but at least
// `least`: beyond it lie keys that no query of the run sees, whose factor need only be finite.
struct Decay {
  const float* rate;  // (D / 2), or null: 1
  int half;           // D / 2
  int period;
  std::int64_t first, step, least;

  __device__ float factor(int r, int c) const {
    const std::int64_t p = first + (r % period) * step;
    return exp2f(rate[c < half ? c : c - half] * static_cast<float>(p < least ? least : p));
  }
};

// How many queries may share a reference.
__device__ inline int run_of_queries(const Problem& p) {
  if (p.decay == nullptr) return kTile;
  float steepest = 0.0f;
  for (int c = 0; c < p.head_dim / 2; ++c) steepest = fmaxf(steepest, -p.decay[c]);
  const float rows = 24.0f / (steepest * static_cast<float>(p.position_stride));  // 24 / 0: inf
  return rows >= static_cast<float>(kTile - 1) ? kTile : 1 + static_cast<int>(rows);
}

// Of queries whose runs start at the tile's first one.
__device__ inline Decay decay_of_queries(const Problem& p, int run) {
  return {p.decay, p.head_dim / 2, run, 0, p.position_stride, 0};
}

// Of keys from `key` on, for the run of queries that starts at `query`; both count from the item's
// corner.
__device__ inline Decay decay_of_keys(const Problem& p, const SliceItem& item, int run, int query,
                                      int key) {
  return {p.decay,
          p.head_dim / 2,
          kTile,
          static_cast<std::int64_t>(query - key) * p.position_stride + item.position_diagonal,
          -p.position_stride,
          (1 - run) * p.position_stride};
}

// to[c][r] = dim c0 + c of row r, for c < kDepth.
template <typename T>
__device__ void stage_columns(float (&to)[kDepth][kPitch], const Rows<T>& rows, const Decay& decay,
                              int c0, int head_dim) {
  constexpr int kStep = kThreads / kDepth;
  const int c = static_cast<int>(threadIdx.x) % kDepth,
            first = static_cast<int>(threadIdx.x) / kDepth;
  const int count = c0 + c < head_dim ? rows.count : 0;
  const T* from = rows.data + c0 + c;
#pragma unroll 4
  for (int r = first; r < kTile; r += kStep)
    to[c][r] = r < count ? to_float(from[r * rows.stride]) : 0.0f;
  if (decay.rate == nullptr) return;
#pragma unroll 1
  for (int r = first; r < count; r += kStep) to[c][r] *= decay.factor(r, c0 + c);
}

// to[b * kWidth + c] = dim c0 + c of row b0 + b, for b < kDepth and c < kWidth.
template <int kWidth, typename T>
__device__ void stage_rows(float* to, const Rows<T>& rows, const Decay& decay, int b0, int c0,
                           int head_dim) {
  constexpr int kStep = kThreads / kWidth;
  const int c = static_cast<int>(threadIdx.x) % kWidth,
            first = static_cast<int>(threadIdx.x) / kWidth;
  const int count = c0 + c < head_dim ? min(kDepth, rows.count - b0) : 0;
  const T* from = rows.data + b0 * rows.stride + c0 + c;
#pragma unroll 4
  for (int b = first; b < kDepth; b += kStep)
    to[b * kWidth + c] = b < count ? to_float(from[b * rows.stride]) : 0.0f;
  if (decay.rate == nullptr) return;
#pragma unroll 1
  for (int b = first; b < count; b += kStep) to[b * kWidth + c] *= decay.factor(b0 + b, c0 + c);
}

// products[r][s] = own row 4 y + r times moving row 4 x + s. Starts with a barrier; another one is
// due before `shared` is written again.
template <typename T>
__device__ void multiply_rows(float (&products)[4][4], const Rows<T>& own, const Decay& own_decay,
                              const Rows<T>& moving, const Decay& moving_decay, int head_dim,
                              Shared& shared) {
  const int y = static_cast<int>(threadIdx.x) / 16, x = static_cast<int>(threadIdx.x) % 16;
#pragma unroll
  for (int r = 0; r < 4; ++r)
#pragma unroll
    for (int s = 0; s < 4; ++s) products[r][s] = 0.0f;
  for (int c0 = 0; c0 < head_dim; c0 += kDepth) {
    __syncthreads();
    stage_columns(shared.columns[0], own, own_decay, c0, head_dim);
    stage_columns(shared.columns[1], moving, moving_decay, c0, head_dim);
    __syncthreads();
#pragma unroll 4
    for (int c = 0; c < kDepth; ++c) {
      const float4 a4 = *reinterpret_cast<const float4*>(&shared.columns[0][c][4 * y]);
      const float4 b4 = *reinterpret_cast<const float4*>(&shared.columns[1][c][4 * x]);
      const float a[4] = {a4.x, a4.y, a4.z, a4.w}, b[4] = {b4.x, b4.y, b4.z, b4.w};
#pragma unroll
      for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int s = 0; s < 4; ++s) products[r][s] = fmaf(a[r], b[s], products[r][s]);
    }
  }
}

// shared.weights[moving row][own row] = weights. Starts with a barrier.
__device__ inline void stage_weights(const float (&weights)[4][4], Shared& shared) {
  const int y = static_cast<int>(threadIdx.x) / 16, x = static_cast<int>(threadIdx.x) % 16;
  __syncthreads();
#pragma unroll
  for (int s = 0; s < 4; ++s)
    *reinterpret_cast<float4*>(&shared.weights[4 * x + s][4 * y]) =
        make_float4(weights[0][s], weights[1][s], weights[2][s], weights[3][s]);
}

// Dims of a sum that a thread holds: c0 + 64 n + 4 x + s at [4 n + s], of own rows 4 y + r.
template <int kWidth>
using Sums = float[4][kWidth / 16];

template <int kWidth>
__device__ void clear(Sums<kWidth>& sums) {
#pragma unroll
  for (int r = 0; r < 4; ++r)
#pragma unroll
    for (int c = 0; c < kWidth / 16; ++c) sums[r][c] = 0.0f;
}

// sums += weights^T times the moving rows, `weights` being what stage_weights staged; its barrier
// is here.
template <int kWidth, typename T>
__device__ void add_weighted_rows(Sums<kWidth>& sums, const Rows<T>& moving, const Decay& decay,
                                  int c0, int head_dim, Shared& shared) {
  const int y = static_cast<int>(threadIdx.x) / 16, x = static_cast<int>(threadIdx.x) % 16;
  float* staged = &shared.columns[0][0][0];
  for (int b0 = 0; b0 < moving.count; b0 += kDepth) {
    __syncthreads();
    stage_rows<kWidth>(staged, moving, decay, b0, c0, head_dim);
    __syncthreads();
#pragma unroll 2
    for (int b = 0; b < kDepth; ++b) {
      const float4 w4 = *reinterpret_cast<const float4*>(&shared.weights[b0 + b][4 * y]);
      const float w[4] = {w4.x, w4.y, w4.z, w4.w};
#pragma unroll
      for (int n = 0; n < kWidth / 64; ++n) {
        const float4 v4 = *reinterpret_cast<const float4*>(staged + b * kWidth + 64 * n + 4 * x);
        const float v[4] = {v4.x, v4.y, v4.z, v4.w};
#pragma unroll
        for (int r = 0; r < 4; ++r)
#pragma unroll
          for (int s = 0; s < 4; ++s) sums[r][4 * n + s] = fmaf(w[r], v[s], sums[r][4 * n + s]);
      }
    }
  }
}

// Keys [begin, end) of an item, counted from its corner.
struct KeyRange {
  int begin, end;
  __device__ bool holds(int key) const { return begin <= key && key < end; }
};

// Those that query i sees, both counted from the item's corner; none for a query outside the item.
__device__ inline KeyRange keys_of(const SliceItem& item, int i) {
  if (i < 0 || i >= item.q_len) return {0, 0};
  return {max(0, i - item.max_distance), min(item.k_len - 1, i - item.min_distance) + 1};
}

// What a query's scores against some keys have in common under ALiBi.
struct Slope {
  float slope;    // 0: none
  int reference;  // the key from which distances count
  double far;     // slope times the query's distance to it

  __device__ Slope(const Problem& p, const SliceItem& item, int head, int i, int reference_key)
      : slope(p.slopes == nullptr ? 0.0f : p.slopes[head]), reference(reference_key), far(0.0) {
    const std::int64_t distance =
        static_cast<std::int64_t>(i - reference) * p.position_stride + item.position_diagonal;
    far = static_cast<double>(slope) * static_cast<double>(distance);
  }
  // score - slope (p(i, key) - p(i, reference))
  __device__ float apply(const Problem& p, float score, int key) const {
    const auto steps =
        static_cast<float>(static_cast<std::int64_t>(reference - key) * p.position_stride);
    return fmaf(-slope, steps, score);
  }
};

}  // namespace farspan::cuda::any_shape
