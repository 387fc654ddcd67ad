// The block of forward_kernel.cuh from its first to its last instruction, and its launch. Included
// by one translation unit for each head dim.
#pragma once

#include "kernels/cuda/attention/forward_kernel.cuh"

namespace farspan::cuda {

// Where a lane's rows are in the call.
struct RowPlace {
  int row;  // the first that this lane holds; the others are 16 r + 8 half further
  int num_q;
  int head, num_heads, head_dim;
  int quad;  // l % 4

  __device__ __forceinline__ int row_of(int r, int half) const { return row + r * 16 + half * 8; }
  __device__ __forceinline__ std::int64_t stat(int at) const {
    return static_cast<std::int64_t>(head) * num_q + at;
  }
  __device__ __forceinline__ std::int64_t element(int at) const {
    return (static_cast<std::int64_t>(at) * num_heads + head) * head_dim;
  }
};

// 0 for l = 0, of rows that saw no key. NaN stays NaN.
__device__ __forceinline__ float inverse_of(float sum) { return sum == 0.0f ? 0.0f : 1.0f / sum; }

template <int kRowTiles, int kDim>
__device__ __forceinline__ void read_accumulators(float (&o)[kRowTiles][kDim / 8][4],
                                                  const float* acc, const RowPlace& place) {
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = place.row_of(r, half);
      const float* from = acc + place.element(row) + place.quad * 2;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        const bool there = row < place.num_q && n * 8 < place.head_dim;
        const float2 x =
            there ? *reinterpret_cast<const float2*>(from + n * 8) : make_float2(0.0f, 0.0f);
        o[r][n][half * 2] = x.x;
        o[r][n][half * 2 + 1] = x.y;
      }
    }
}

template <int kRowTiles, int kDim>
__device__ __forceinline__ void write_accumulators(const float (&o)[kRowTiles][kDim / 8][4],
                                                   const float (&factor)[kRowTiles][2], float* acc,
                                                   const RowPlace& place) {
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = place.row_of(r, half);
      float* to = acc + place.element(row) + place.quad * 2;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n)
        if (row < place.num_q && n * 8 < place.head_dim)
          *reinterpret_cast<float2*>(to + n * 8) = make_float2(
              o[r][n][half * 2] * factor[r][half], o[r][n][half * 2 + 1] * factor[r][half]);
    }
}

// o / l in bf16, through this warp's rows of the queries in shared memory, which only it has read:
// stores of 16 bytes.
template <int kRowTiles, int kDim>
__device__ __forceinline__ void write_out(const float (&o)[kRowTiles][kDim / 8][4],
                                          const float (&inverse)[kRowTiles][2], bf16* out,
                                          bf16* staging, int warp_row, const RowPlace& place) {
  using T = ForwardTraits<kDim>;
  const int lane = static_cast<int>(threadIdx.x) % 32, group = lane / 4;
  __syncwarp();
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      bf16* to = staging + (r * 16 + half * 8 + group) * T::kPitch + place.quad * 2;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n)
        *reinterpret_cast<std::uint32_t*>(to + n * 8) = pack_bf16(
            o[r][n][half * 2] * inverse[r][half], o[r][n][half * 2 + 1] * inverse[r][half]);
    }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kRowTiles * 16 * T::kChunks / 32; ++i) {
    const int chunk = lane + i * 32;
    const int row = chunk / T::kChunks, dim = chunk % T::kChunks * 8;
    const int at = warp_row + row;
    if (at < place.num_q && dim < place.head_dim)
      *reinterpret_cast<uint4*>(out + place.element(at) + dim) =
          *reinterpret_cast<const uint4*>(staging + row * T::kPitch + dim);
  }
}

// A warp's rows from call to call: m, this lane's part of l, and o.
template <int kDim>
struct Rows {
  static constexpr int kTiles = ForwardTraits<kDim>::kRowTiles;
  RowState<kTiles> state;
  float o[kTiles][kDim / 8][4];
};

template <int kDim, bool kBias>
__device__ __forceinline__ void begin(Rows<kDim>& rows, const RowMaxima<kDim>& maxima,
                                      const ForwardCall& call, const RowPlace& place) {
  constexpr int kTiles = Rows<kDim>::kTiles;
#pragma unroll
  for (int r = 0; r < kTiles; ++r)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = place.row_of(r, half);
      const bool carried = !call.first && row < call.num_q;
      const float highest = carried ? call.row_max[place.stat(row)] : -INFINITY;
      rows.state.max[r][half] = highest;
      rows.state.sum[r][half] = carried && place.quad == 0 ? call.row_sum[place.stat(row)] : 0.0f;
      if constexpr (kBias) maxima.set(r, half, static_cast<double>(highest));
    }
  if constexpr (kBias) __syncwarp();
  if (!call.first) {
    read_accumulators<kTiles, kDim>(rows.o, call.acc, place);
    return;
  }
#pragma unroll
  for (int r = 0; r < kTiles; ++r)
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) rows.o[r][n][e] = 0.0f;
}

// Writes the state, or out and lse. `staging`: this warp's rows of the queries.
template <int kDim, bool kBias>
__device__ __forceinline__ void end(const Rows<kDim>& rows, const RowMaxima<kDim>& maxima,
                                    const ForwardCall& call, const RowPlace& place, bf16* staging,
                                    int warp_row) {
  constexpr int kTiles = Rows<kDim>::kTiles;
  constexpr unsigned kAll = 0xffffffffu;
  float factor[kTiles][2];
#pragma unroll
  for (int r = 0; r < kTiles; ++r)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = rows.state.sum[r][half];
      sum += __shfl_xor_sync(kAll, sum, 1);
      sum += __shfl_xor_sync(kAll, sum, 2);
      double highest = static_cast<double>(rows.state.max[r][half]);
      if constexpr (kBias) highest = maxima.get(r, half);
      // What f32 rounds off a large maximum goes to l and o.
      const auto stored = static_cast<float>(highest);
      const bool rounded = kBias && stored != -INFINITY;
      const float shift = rounded ? exp2_approx(static_cast<float>(highest - stored)) : 1.0f;
      factor[r][half] = call.last ? inverse_of(sum) : shift;
      const int row = place.row_of(r, half);
      if (place.quad != 0 || row >= call.num_q) continue;
      if (call.last) {
        const double lse = (highest + static_cast<double>(log2f(sum))) * kLn2;
        call.lse[place.stat(row)] = sum == 0.0f ? -INFINITY : static_cast<float>(lse);
      } else {
        call.row_max[place.stat(row)] = stored;
        call.row_sum[place.stat(row)] = sum * shift;
      }
    }
  if (call.last)
    write_out<kTiles, kDim>(rows.o, factor, call.out, staging, warp_row, place);
  else
    write_accumulators<kTiles, kDim>(rows.o, factor, call.acc, place);
}

template <int kDim, bool kBias>
__global__ void __launch_bounds__(ForwardTraits<kDim>::kThreads, ForwardTraits<kDim>::kBlocksPerSm)
    attention_forward_kernel(ForwardCall call, DeviceSchedule schedule) {
  using T = ForwardTraits<kDim>;
  bf16* const queries = shared_memory<bf16>();
  bf16* const keys = queries + T::kRows * T::kPitch;
  bf16* const values = keys + T::kKeys * T::kPitch;

  // All heads of a tile of queries are neighbours: those of a group read the same keys at one time.
  const int head = static_cast<int>(blockIdx.x % static_cast<unsigned>(call.num_q_heads));
  const StationaryTile tile = schedule.tiles[blockIdx.x / static_cast<unsigned>(call.num_q_heads)];
  const TileWalk walk{schedule.items, tile.item_end, head / (call.num_q_heads / call.num_kv_heads)};
  KeyTile next = walk.first_from(tile.item_begin);
  if (walk.done(next) && !call.first && !call.last) return;  // the state stays as it is

  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * (T::kRowTiles * 16);  // of the block
  const int column = lane % 4 * 2;
  const RowPlace place{.row = tile.row_begin + warp_row + lane / 4,
                       .num_q = call.num_q,
                       .head = head,
                       .num_heads = call.num_q_heads,
                       .head_dim = call.head_dim,
                       .quad = lane % 4};
  if (!walk.done(next)) {
    load_tile<kDim, T::kRows>(queries, call.q + place.element(tile.row_begin),
                              call.num_q_heads * call.head_dim, call.num_q - tile.row_begin,
                              call.head_dim);
    load_keys<kDim>(keys, call.k, call, walk, next);
    cp_async_commit();
  }
  Rows<kDim> rows;
  const RowMaxima<kDim> maxima(queries, warp_row + lane / 4, place.quad);
  Alibi alibi;
  if constexpr (kBias) alibi = Alibi::of(call.slopes[head], call.position_stride);
  begin<kDim, kBias>(rows, maxima, call, place);

  // Fragments of 16 x 16: of A (queries) and of values, lanes 0-15 and 16-31 give the rows of the
  // left and the right half; of B (keys, by rows), lanes 8-15 the right half of the first 8 rows.
  const bf16* const lane_queries = queries + (warp_row + lane % 16) * T::kPitch + lane / 16 * 8;
  const bf16* const lane_keys = keys + (lane / 16 * 8 + lane % 8) * T::kPitch + lane / 8 % 2 * 8;
  const bf16* const lane_values = values + lane % 16 * T::kPitch + lane / 16 * 8;
  int entered = -1;  // the item that maxima are relative to
  while (!walk.done(next)) {
    const KeyTile now = next;
    next = walk.after(now);

    cp_async_wait<0>();
    __syncthreads();  // keys are there; everyone is done with the values before
    load_keys<kDim>(values, call.v, call, walk, now);
    cp_async_commit();
    float s[T::kRowTiles][T::kKeys / 8][4];
    multiply_keys<kDim>(s, lane_queries, lane_keys);

    cp_async_wait<0>();
    __syncthreads();  // values are there; everyone is done with the keys
    if (!walk.done(next)) load_keys<kDim>(keys, call.k, call, walk, next);
    cp_async_commit();
    const SliceItem& item = walk.items[now.item];
    const int tile_begin = now.index * T::kKeys;
    if constexpr (kBias) {
      if (entered != now.item) {
        if (entered >= 0)
          maxima.leave(rows.state, alibi, walk.items[entered], place.row, call.position_stride);
        maxima.enter(rows.state, alibi, item, place.row, call.position_stride);
        entered = now.item;
      }
      add_bias(s, alibi, item, call.scale_log2, tile_begin, place.row, column);
    }
    if (now.index < item.full_begin || now.index >= item.full_end)
      hide(s, item, tile_begin, place.row, column);
    take_softmax<kDim>(s, rows.o, rows.state, kBias ? 1.0f : call.scale_log2);
    multiply_values<kDim>(rows.o, s, lane_values);
  }
  cp_async_wait<0>();
  if constexpr (kBias) {
    if (entered >= 0)
      maxima.leave(rows.state, alibi, walk.items[entered], place.row, call.position_stride);
  }
  end<kDim, kBias>(rows, maxima, call, place, queries + warp_row * T::kPitch,
                   tile.row_begin + warp_row);
}

template <int kDim>
void launch_forward(const ForwardCall& call, const DeviceSchedule& schedule, cudaStream_t stream) {
  using T = ForwardTraits<kDim>;
  const bool bias = call.slopes != nullptr;
  const LaunchShape shape{
      .grid = static_cast<unsigned>(schedule.num_tiles) * static_cast<unsigned>(call.num_q_heads),
      .block = T::kThreads,
      .shared_bytes = T::shared_bytes(bias),
      .stream = stream};
  if (bias)
    launch(attention_forward_kernel<kDim, true>, shape, call, schedule);
  else
    launch(attention_forward_kernel<kDim, false>, shape, call, schedule);
}

}  // namespace farspan::cuda
