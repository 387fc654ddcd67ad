#include "core/error.h"
#include "kernels/cuda/attention/any_shape.cuh"
#include "kernels/cuda/cuda_device.h"

namespace farspan::cuda {
namespace any_shape {
namespace {

template <typename T>
struct Backward {
  Problem problem;
  const T *q, *k, *v, *dout;
  const float *lse, *delta;
  float *dq, *dk, *dv;
  bool by_slice;  // add each slice's sums by themselves, in slice order
};

// What a query's probabilities need.
struct QueryStats {
  float lse, delta;
};

// Of row `row` of the tensor; rows that are not there have seen no key.
template <typename T>
__device__ QueryStats stats_of(const Backward<T>& call, int head, std::int64_t row) {
  if (row >= call.problem.num_q) return {-kInfinity, 0.0f};
  const std::int64_t at = static_cast<std::int64_t>(head) * call.problem.num_q + row;
  return {call.lse[at], call.delta[at]};
}

// A tile of queries and one of keys: query r is `query` + r and key c `key` + c, both counted from
// the item's corner. Queries [run_begin, run_end) of the tile take part.
struct Place {
  int query, key, head, run_begin, run_end;
};

// Of the keys that a query sees in a slice the one with the largest bias. It must not depend on
// where tiles of keys begin: with own keys they follow the call's KV block.
__device__ int reference_key(const Problem& p, const KeyRange& keys, int head) {
  const bool nearest = p.slopes == nullptr || p.slopes[head] >= 0.0f;
  return nearest ? keys.end - 1 : keys.begin;
}

// Of one query against the tile's keys.
struct QueryView {
  KeyRange keys;
  Slope slope;
  float near_lse, delta;

  __device__ QueryView(const Problem& p, const SliceItem& item, const Place& place, int r,
                       const QueryStats& stats)
      : keys(keys_of(item, place.query + r)),
        slope(p, item, place.head, place.query + r, reference_key(p, keys, place.head)),
        near_lse(static_cast<float>(static_cast<double>(stats.lse) + slope.far)),
        delta(stats.delta) {
    if (r < place.run_begin || r >= place.run_end || stats.lse == -kInfinity) keys = {0, 0};
  }

  // Turns q.k into P and dout.v into dS, exactly 0 where the query does not see the key.
  __device__ void differentiate(const Problem& p, int key, float& score, float& dp) const {
    if (!keys.holds(key)) {
      score = dp = 0.0f;
      return;
    }
    score *= p.scale;
    if (p.slopes != nullptr) score = slope.apply(p, score, key);
    score = exp2f((score - near_lse) * kLog2E);
    dp = score * (dp - delta);
  }
};

// to[row of the tile][dim] += factor * sums, for the `count` rows at row_begin of head `head`; with
// xPos times the row's own factor.
template <int kWidth>
__device__ void add_sums(const Sums<kWidth>& sums, const Rows<float>& to, const Decay& decay,
                         float factor, int c0, int head_dim) {
  const int y = static_cast<int>(threadIdx.x) / 16, x = static_cast<int>(threadIdx.x) % 16;
#pragma unroll
  for (int r = 0; r < 4; ++r)
#pragma unroll
    for (int n = 0; n < kWidth / 16; ++n) {
      const int row = 4 * y + r, c = c0 + n / 4 * 64 + 4 * x + n % 4;
      if (row >= to.count || c >= head_dim) continue;
      float sum = sums[r][n];
      if (decay.rate != nullptr) sum *= decay.factor(row, c);
      float* at = const_cast<float*>(to.data) + row * to.stride + c;
      *at = fmaf(sum, factor, *at);
    }
}

// dq of kTile queries of one head, dims [c0, c0 + kWidth).
template <typename T, int kWidth>
class QueryBlock {
 public:
  __device__ QueryBlock(const Backward<T>& call, Shared& shared, const StationaryTile& tile,
                        int head, int c0)
      : call_(call),
        p_(call.problem),
        shared_(shared),
        row_begin_(tile.row_begin),
        head_(head),
        kv_head_(head / call.problem.group()),
        c0_(c0),
        count_(min(kTile, call.problem.num_q - tile.row_begin)),
        run_(run_of_queries(call.problem)) {}

  __device__ void run(const StationaryTile& tile) {
    clear<kWidth>(sums_);
    for (int i = tile.item_begin; i < tile.item_end; ++i) {
      const SliceItem item = p_.schedule.items[i];
      if (kv_head_ < item.head_begin || kv_head_ >= item.head_end) continue;
      for (int t = item.begin; t < item.end; ++t) add_tile(item, t * kTile);
      if (call_.by_slice) add();
    }
    if (!call_.by_slice) add();
  }

 private:
  __device__ void add() {
    add_sums<kWidth>(sums_, rows(static_cast<const float*>(call_.dq)), decay_of_queries(p_, run_),
                     p_.scale, c0_, p_.head_dim);
    clear<kWidth>(sums_);
  }

  template <typename X>
  __device__ Rows<X> rows(const X* x) const {
    return rows_of(x, p_.num_q_heads, p_.head_dim, row_begin_, count_, head_);
  }

  __device__ void add_tile(const SliceItem& item, int key) {
    const int query = row_begin_ - item.q_begin, num_keys = min(kTile, item.k_len - key);
    const std::int64_t first_key = static_cast<std::int64_t>(item.k_begin) + key;
    const Rows<T> k = rows_of(call_.k, p_.num_kv_heads, p_.head_dim, first_key, num_keys, kv_head_);
    const Rows<T> v = rows_of(call_.v, p_.num_kv_heads, p_.head_dim, first_key, num_keys, kv_head_);
    for (int first = 0; first < count_; first += run_) {
      const int end = min(first + run_, count_);
      if (query + end <= 0 || query + first >= item.q_len) continue;
      const Decay k_decay = decay_of_keys(p_, item, run_, query + first, key);
      float scores[4][4], dp[4][4];
      multiply_rows(scores, rows(call_.q), decay_of_queries(p_, run_), k, k_decay, p_.head_dim,
                    shared_);
      multiply_rows(dp, rows(call_.dout), Decay{}, v, Decay{}, p_.head_dim, shared_);
      const Place place = {query, key, head_, first, end};
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int row = 4 * y_ + r;
        const QueryView view(p_, item, place, row, stats_of(call_, head_, row_begin_ + row));
#pragma unroll
        for (int s = 0; s < 4; ++s)
          view.differentiate(p_, key + 4 * x_ + s, scores[r][s], dp[r][s]);
      }
      stage_weights(dp, shared_);
      add_weighted_rows<kWidth>(sums_, k, k_decay, c0_, p_.head_dim, shared_);
    }
  }

  const Backward<T>& call_;
  const Problem& p_;
  Shared& shared_;
  const int row_begin_, head_, kv_head_, c0_, count_, run_;
  const int y_ = static_cast<int>(threadIdx.x) / 16, x_ = static_cast<int>(threadIdx.x) % 16;
  Sums<kWidth> sums_;
};

// dk and dv of kTile keys of one KV head, dims [c0, c0 + kWidth).
template <typename T, int kWidth>
class KeyBlock {
 public:
  __device__ KeyBlock(const Backward<T>& call, Shared& shared, const StationaryTile& tile,
                      int kv_head, int c0)
      : call_(call),
        p_(call.problem),
        shared_(shared),
        row_begin_(tile.row_begin),
        kv_head_(kv_head),
        c0_(c0),
        count_(min(kTile, call.problem.num_k - tile.row_begin)),
        run_(run_of_queries(call.problem)) {}

  __device__ void run(const StationaryTile& tile) {
    clear<kWidth>(dk_);
    clear<kWidth>(dv_);
    for (int i = tile.item_begin; i < tile.item_end; ++i) {
      const SliceItem item = p_.schedule.items[i];
      if (kv_head_ < item.head_begin || kv_head_ >= item.head_end) continue;
      for (int h = 0; h < p_.group(); ++h)
        for (int t = item.begin; t < item.end; ++t)
          add_tile(item, kv_head_ * p_.group() + h, t * kTile);
      if (call_.by_slice) add();
    }
    if (!call_.by_slice) add();
  }

 private:
  __device__ void add() {
    add_dk(Decay{});
    add_sums<kWidth>(dv_, rows(static_cast<const float*>(call_.dv)), Decay{}, 1.0f, c0_,
                     p_.head_dim);
    clear<kWidth>(dv_);
  }
  __device__ void add_dk(const Decay& decay) {
    add_sums<kWidth>(dk_, rows(static_cast<const float*>(call_.dk)), decay, p_.scale, c0_,
                     p_.head_dim);
    clear<kWidth>(dk_);
  }

  template <typename X>
  __device__ Rows<X> rows(const X* x) const {
    return rows_of(x, p_.num_kv_heads, p_.head_dim, row_begin_, count_, kv_head_);
  }

  // Queries [query, query + kTile) of the item, of one head.
  __device__ void add_tile(const SliceItem& item, int head, int query) {
    const int key = row_begin_ - item.k_begin, num_queries = min(kTile, item.q_len - query);
    const std::int64_t first_row = static_cast<std::int64_t>(item.q_begin) + query;
    const Rows<T> q = rows_of(call_.q, p_.num_q_heads, p_.head_dim, first_row, num_queries, head);
    const Rows<T> dout =
        rows_of(call_.dout, p_.num_q_heads, p_.head_dim, first_row, num_queries, head);
    const Decay q_decay = decay_of_queries(p_, run_);
    for (int first = 0; first < num_queries; first += run_) {
      const Decay k_decay = decay_of_keys(p_, item, run_, query + first, key);
      float scores[4][4], dp[4][4];  // [key][query]
      multiply_rows(scores, rows(call_.k), k_decay, q, q_decay, p_.head_dim, shared_);
      multiply_rows(dp, rows(call_.v), Decay{}, dout, Decay{}, p_.head_dim, shared_);
      const Place place = {query, key, head, first, min(first + run_, num_queries)};
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        const int row = 4 * x_ + s;
        const QueryView view(p_, item, place, row, stats_of(call_, head, first_row + row));
#pragma unroll
        for (int r = 0; r < 4; ++r)
          view.differentiate(p_, key + 4 * y_ + r, scores[r][s], dp[r][s]);
      }
      stage_weights(scores, shared_);
      add_weighted_rows<kWidth>(dv_, dout, Decay{}, c0_, p_.head_dim, shared_);
      stage_weights(dp, shared_);
      add_weighted_rows<kWidth>(dk_, q, q_decay, c0_, p_.head_dim, shared_);
      if (p_.decay != nullptr) add_dk(k_decay);  // another factor for the next run
    }
  }

  const Backward<T>& call_;
  const Problem& p_;
  Shared& shared_;
  const int row_begin_, kv_head_, c0_, count_, run_;
  const int y_ = static_cast<int>(threadIdx.x) / 16, x_ = static_cast<int>(threadIdx.x) % 16;
  Sums<kWidth> dk_, dv_;
};

template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads, 2) any_shape_dq_kernel(const Backward<T> call) {
  __shared__ Shared shared;
  const int num_heads = call.problem.num_q_heads, block = static_cast<int>(blockIdx.x);
  const StationaryTile tile = call.problem.schedule.tiles[block / num_heads];
  if (tile.item_begin == tile.item_end) return;
  QueryBlock<T, kWidth>(call, shared, tile, block % num_heads,
                        static_cast<int>(blockIdx.y) * kWidth)
      .run(tile);
}

template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads, 2) any_shape_dkv_kernel(const Backward<T> call) {
  __shared__ Shared shared;
  const int num_heads = call.problem.num_kv_heads, block = static_cast<int>(blockIdx.x);
  const StationaryTile tile = call.problem.schedule.tiles[block / num_heads];
  if (tile.item_begin == tile.item_end) return;
  KeyBlock<T, kWidth>(call, shared, tile, block % num_heads, static_cast<int>(blockIdx.y) * kWidth)
      .run(tile);
}

template <typename T, int kWidth>
void launch_backward(Backward<T> call, std::span<const AttentionSlice> slices,
                     ScheduleCache& schedules, Stream& stream) {
  Problem& p = call.problem;
  const auto shape = [&](int num_heads) {
    return LaunchShape{.grid = dim3(static_cast<unsigned>(p.schedule.num_tiles * num_heads),
                                    static_cast<unsigned>((p.head_dim + kWidth - 1) / kWidth)),
                       .block = kThreads,
                       .stream = native(stream)};
  };
  // A list is good until the next get() on its stream.
  p.schedule = schedules.get(slices, schedule_shape(p, Stationary::kQueries), stream);
  launch(any_shape_dq_kernel<T, kWidth>, shape(p.num_q_heads), call);
  p.schedule = schedules.get(slices, schedule_shape(p, Stationary::kKeys), stream);
  launch(any_shape_dkv_kernel<T, kWidth>, shape(p.num_kv_heads), call);
}

}  // namespace
}  // namespace any_shape

void attention_backward_any_shape(const AttentionBackwardArgs& args, ScheduleCache& schedules,
                                  Stream& stream) {
  using namespace any_shape;
  if (args.q.numel() == 0 || args.k.numel() == 0 || args.slices.empty()) return;
  const Problem p = problem_of(args.q, args.k, args.scale, args.bias);
  FARSPAN_CHECK(p.decay == nullptr || p.head_dim % 2 == 0, "xPos with head dim {}", p.head_dim);
  with_compute_type(args.q.dtype, [&]<typename T>() {
    const Backward<T> call = {.problem = p,
                              .q = data<const T>(args.q),
                              .k = data<const T>(args.k),
                              .v = data<const T>(args.v),
                              .dout = data<const T>(args.dout),
                              .lse = data<const float>(args.lse),
                              .delta = data<const float>(args.delta),
                              .dq = data<float>(args.dq),
                              .dk = data<float>(args.dk),
                              .dv = data<float>(args.dv),
                              .by_slice = args.invariant};
    if (p.head_dim <= 64)
      launch_backward<T, 64>(call, args.slices, schedules, stream);
    else
      launch_backward<T, 128>(call, args.slices, schedules, stream);
  });
}

}  // namespace farspan::cuda
