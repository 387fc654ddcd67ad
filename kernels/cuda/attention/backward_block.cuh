// The blocks of backward_kernel.cuh from their first to their last instruction, and their launch.
// Included by one translation unit for each head dim and part.
#pragma once

#include "kernels/cuda/attention/backward_sides.cuh"

namespace farspan::cuda {

template <int kDim, BackwardPart kPart, bool kBias>
class BackwardBlock {
  using T = BackwardTraits<kDim>;
  using Shared = BackwardShared<T, kPart>;
  static constexpr bool kByKeys = Shared::kByKeys;
  static constexpr bool kAtomicDq = kPart == BackwardPart::kAll;

 public:
  __device__ __forceinline__ BackwardBlock(const BackwardCall& call, const StationaryTile& tile,
                                           const BackwardWalk& walk, int own_head)
      : call_(call),
        walk_(walk),
        sides_(sides_of<kPart>(call)),
        own_begin_(tile.row_begin),
        own_count_((kByKeys ? call.num_k : call.num_q) - tile.row_begin),
        own_head_(own_head),
        slope_(kBias ? call.slopes[walk.head_begin] : 0.0f) {}

  __device__ __forceinline__ void run(BackwardStep next) {
    load_own();
    load(next, 0);
    cp_async_commit();
    if constexpr (kByKeys)
      moving_queries_.read(call_, walk_.items[next.item], next.head, next.index * T::kMoving);
    else
      own_queries_.read(call_, own_head_, static_cast<std::int64_t>(own_begin_) + lane_.row);
    clear(sums_);
    if constexpr (kByKeys) clear(dv_);
    int entered = -1;
    for (int n = 0; !walk_.done(next); ++n) {
      const BackwardStep now = next;
      const SliceItem& item = walk_.items[now.item];
      next = walk_.after(now);
      begin_step(item, now, n, entered);
      cp_async_wait<0>();
      __syncthreads();  // the tile is there; everyone is done with the step before
      if (Shared::kStages == 2 && !walk_.done(next)) start(next, n + 1);
      if constexpr (kByKeys) {
        if (!walk_.done(next))
          moving_queries_.read(call_, walk_.items[next.item], next.head, next.index * T::kMoving);
      }
      score(item, now, n);
      if constexpr (T::kDimWarps == 1 && !kAtomicDq)
        __syncwarp();
      else
        __syncthreads();  // P and dS of all warps are there
      sum(item, now, n);
      if (Shared::kStages == 1 && !walk_.done(next)) {
        __syncthreads();  // everyone is done with the tile
        start(next, n + 1);
      }
      if (call_.by_slice && next.item != now.item) add_to_gradients();
    }
    if (!call_.by_slice) add_to_gradients();
  }

 private:
  __device__ __forceinline__ int moving_len(const SliceItem& s) const {
    return kByKeys ? s.q_len : s.k_len;
  }
  // The block's first row from the item's corner.
  __device__ __forceinline__ int own_from(const SliceItem& s) const {
    return own_begin_ - (kByKeys ? s.k_begin : s.q_begin);
  }
  __device__ __forceinline__ float slope_step() const {
    return slope_ * kLog2E * static_cast<float>(call_.position_stride);
  }

  __device__ __forceinline__ void load_own() {
    const int stride = sides_.own_heads * call_.head_dim;
    const std::int64_t first = static_cast<std::int64_t>(own_begin_) * stride +
                               static_cast<std::int64_t>(own_head_) * call_.head_dim;
    const bool* shown = nullptr;
    if constexpr (kAtomicDq) shown = find_shown();
#pragma unroll
    for (int m = 0; m < 2; ++m)
      load_rows<T, T::kOwn>(shared_.own[m], sides_.own[m] + first, stride, own_count_,
                            call_.head_dim, shown);
  }

  // Keys that no slice shows may hold anything, and dQ sums over all keys of the block: they are
  // read as zeros.
  __device__ __forceinline__ const bool* find_shown() {
    __shared__ bool shown[T::kOwn];
    for (int row = static_cast<int>(threadIdx.x); row < T::kOwn; row += T::kThreads) {
      bool any = false;
      for (BackwardStep step = walk_.first_from(walk_.item_begin); !walk_.done(step);
           step = walk_.first_from(step.item + 1)) {
        const int key = own_from(walk_.items[step.item]) + row;
        any |= key >= 0 && key < walk_.items[step.item].k_len;
      }
      shown[row] = any;
    }
    __syncthreads();
    return shown;
  }

  __device__ __forceinline__ void load(const BackwardStep& step, int n) {
    const SliceItem& s = walk_.items[step.item];
    const int stride = sides_.moving_heads * call_.head_dim, begin = step.index * T::kMoving;
    const int head = kByKeys ? step.head : walk_.kv_head;
    const std::int64_t row = static_cast<std::int64_t>(kByKeys ? s.q_begin : s.k_begin) + begin;
    const std::int64_t first = row * stride + static_cast<std::int64_t>(head) * call_.head_dim;
#pragma unroll
    for (int m = 0; m < 2; ++m)
      load_rows<T, T::kMoving>(shared_.tile(n, m), sides_.moving[m] + first, stride,
                               moving_len(s) - begin, call_.head_dim);
  }
  __device__ __forceinline__ void start(const BackwardStep& step, int n) {
    load(step, n);
    cp_async_commit();
  }

  __device__ __forceinline__ void begin_step(const SliceItem& item, const BackwardStep& step, int n,
                                             int& entered) {
    if constexpr (kByKeys) {
      moving_queries_.write(shared_.stats(n, 0), shared_.stats(n, 1), shared_.stats(n, 2), item,
                            step.index * T::kMoving, own_from(item), call_.position_stride);
      if constexpr (kBias) slope_ = moving_queries_.slope();
    } else if constexpr (kBias) {
      if (entered != step.item)
        own_queries_.enter(item, own_from(item) + lane_.row, slope_, call_.position_stride);
      entered = step.item;
    }
  }

  // P and dS of this warp, handed to the others.
  __device__ __forceinline__ void score(const SliceItem& item, const BackwardStep& step, int n) {
    const auto own = upright<kDim>(lane_.first_row());
    const auto moving = crossed<kDim>(lane_.dim_warp * T::kScoreTiles * 8);
    const int first_chunk = lane_.dim_warp * T::kScoreTiles;
    const int column = step.index * T::kMoving + lane_.moving;  // from the item's corner
    // Rows past the keys' end count as shown, and what they make of P, which nothing bounds, would
    // reach dQ: infinity times the zeros that stand for their K.
    const bool full = step.index >= item.full_begin && step.index < item.full_end &&
                      !(kAtomicDq && own_count_ < T::kOwn);
    const float scale2 = call_.scale * kLog2E;

    float p[T::kRowTiles][T::kScoreTiles][4];
    multiply_rows<T>(p, shared_.own[0], shared_.tile(n, 0), own, moving);
    if constexpr (kByKeys)
      moving_queries_.exponentiate(p, shared_.stats(n, 0) + lane_.moving,
                                   shared_.stats(n, 2) + lane_.moving, scale2, slope_step(),
                                   lane_.row);
    else
      own_queries_.exponentiate(p, scale2, slope_step(), column);
    if (!full) hide<T, kByKeys>(p, item, own_from(item) + lane_.row, column);
    if constexpr (kByKeys) hand_over<T>(shared_.p, p, lane_.row, first_chunk);

    float ds[T::kRowTiles][T::kScoreTiles][4];
    multiply_rows<T>(ds, shared_.own[1], shared_.tile(n, 1), own, moving);
    if constexpr (kByKeys)
      moving_queries_.differentiate(ds, p, shared_.stats(n, 1) + lane_.moving);
    else
      own_queries_.differentiate(ds, p);
    if (!full) hide_like<T>(ds, p);
    hand_over<T>(shared_.ds, ds, lane_.row, first_chunk);
  }

  // This warp's part of the sums over the tile.
  __device__ __forceinline__ void sum(const SliceItem& item, const BackwardStep& step, int n) {
    const auto own = upright<T::kMoving>(lane_.first_row());
    const auto depth = upright<kDim>(0);
    if constexpr (kByKeys)
      add_weighted_rows<T>(dv_, shared_.p, shared_.tile(n, 1), own, depth, lane_.dim_chunk);
    add_weighted_rows<T>(sums_, shared_.ds, shared_.tile(n, 0), own, depth, lane_.dim_chunk);
    if constexpr (kAtomicDq) {
      const int stride = call_.num_q_heads * call_.head_dim, begin = step.index * T::kMoving;
      const std::int64_t row = static_cast<std::int64_t>(item.q_begin) + begin;
      add_dq<T>(call_.dq + row * stride + static_cast<std::int64_t>(step.head) * call_.head_dim,
                shared_.ds, shared_.own[0], call_.scale, stride, item.q_len - begin,
                call_.head_dim);
    }
  }

  // Adds the sums, dK and dV or dQ, and starts new ones.
  __device__ __forceinline__ void add_to_gradients() {
    const std::int64_t stride = static_cast<std::int64_t>(sides_.own_heads) * call_.head_dim;
    const int dim = lane_.dim_chunk * 8;
    const std::int64_t first = (static_cast<std::int64_t>(own_begin_) + lane_.row) * stride +
                               static_cast<std::int64_t>(own_head_) * call_.head_dim + dim +
                               lane_.lane % 4 * 2;
    const int rows = own_count_ - lane_.row, dims = call_.head_dim - dim;
    add_to_gradient<T>((kByKeys ? call_.dk : call_.dq) + first, sums_, call_.scale, stride, rows,
                       dims);
    clear(sums_);
    if constexpr (kByKeys) {
      add_to_gradient<T>(call_.dv + first, dv_, 1.0f, stride, rows, dims);
      clear(dv_);
    }
  }

  const BackwardCall& call_;
  const BackwardWalk walk_;
  const BackwardSides sides_;
  const Shared shared_;
  const BackwardLane<T> lane_;
  const int own_begin_, own_count_, own_head_;
  float slope_;
  MovingQueries<T, kBias> moving_queries_;
  OwnQueries<T, kBias> own_queries_;
  float sums_[T::kRowTiles][T::kDimTiles][4];  // dK or dQ, unscaled
  float dv_[T::kRowTiles][T::kDimTiles][4];
};

template <int kDim, BackwardPart kPart, bool kBias>
__global__ void __launch_bounds__(BackwardTraits<kDim>::kThreads,
                                  BackwardTraits<kDim>::kBlocksPerSm)
    attention_backward_kernel(BackwardCall call, DeviceSchedule schedule) {
  constexpr bool kByKeys = kPart != BackwardPart::kQueries;
  // Blocks of all heads of a tile are neighbours.
  const auto num_heads = static_cast<unsigned>(kByKeys ? call.num_kv_heads : call.num_q_heads);
  const int head = static_cast<int>(blockIdx.x % num_heads);
  const int group = call.num_q_heads / call.num_kv_heads;
  const StationaryTile tile = schedule.tiles[blockIdx.x / num_heads];
  const BackwardWalk walk{.items = schedule.items,
                          .item_begin = tile.item_begin,
                          .item_end = tile.item_end,
                          .kv_head = kByKeys ? head : head / group,
                          .head_begin = kByKeys ? head * group : head,
                          .head_end = kByKeys ? (head + 1) * group : head + 1};
  const BackwardStep first = walk.first_from(tile.item_begin);
  if (walk.done(first)) return;
  BackwardBlock<kDim, kPart, kBias>(call, tile, walk, head).run(first);
}

template <int kDim, BackwardPart kPart>
void launch_backward(const BackwardCall& call, const DeviceSchedule& schedule,
                     cudaStream_t stream) {
  using T = BackwardTraits<kDim>;
  const int heads = kPart == BackwardPart::kQueries ? call.num_q_heads : call.num_kv_heads;
  const LaunchShape shape{
      .grid = static_cast<unsigned>(schedule.num_tiles) * static_cast<unsigned>(heads),
      .block = T::kThreads,
      .shared_bytes = BackwardShared<T, kPart>::kBytes,
      .stream = stream};
  if (call.slopes != nullptr)
    launch(attention_backward_kernel<kDim, kPart, true>, shape, call, schedule);
  else
    launch(attention_backward_kernel<kDim, kPart, false>, shape, call, schedule);
}

}  // namespace farspan::cuda
