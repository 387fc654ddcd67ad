#include "core/error.h"
#include "kernels/cuda/attention/any_shape.cuh"
#include "kernels/cuda/cuda_device.h"

namespace farspan::cuda {
namespace any_shape {
namespace {

template <typename T>
struct Forward {
  Problem problem;
  const T *q, *k, *v;
  float *acc, *row_max, *row_sum;
  T* out;
  float* lse;
  bool first, last;
};

// Sums over the 16 threads that share rows, the same in all of them.
__device__ float sum_over_row(float x) {
#pragma unroll
  for (int offset = 8; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}
__device__ float max_over_row(float x) {
#pragma unroll
  for (int offset = 8; offset > 0; offset /= 2)
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
  return x;
}

constexpr double kLog2EInDouble = 1.4426950408889634, kLn2 = 0.6931471805599453;

// Rounded once, also where the maximum is far from 0.
__device__ float lse_of(float row_max, float row_sum) {
  return static_cast<float>((row_max + log2(static_cast<double>(row_sum))) * kLn2);
}

// The state of a thread's four rows: acc of the dims at hand, m and l.
template <int kWidth>
struct State {
  Sums<kWidth> acc;
  float row_max[4], row_sum[4];
};

// Where a tile of keys meets a tile of queries: row r of the tile is query `query` + r of the item,
// column c key `key` + c. Queries [run_begin, run_end) of the tile take part.
struct Place {
  int query, key, head, run_begin, run_end;
};

// One row's scores to probabilities; its maximum and sum. Returns what its earlier sums count.
__device__ float softmax_row(const Problem& p, const SliceItem& item, const Place& place, int r,
                             float (&scores)[4], float& row_max, float& row_sum) {
  const int x = static_cast<int>(threadIdx.x) % 16, i = place.query + r;
  KeyRange keys = keys_of(item, i);
  if (r < place.run_begin || r >= place.run_end) keys = {0, 0};
  const bool alibi = p.slopes != nullptr;
  const int nearest = max(min(keys.end, place.key + kTile) - 1, place.key);  // of the tile
  const Slope slope(p, item, place.head, i, nearest);
  float highest = -kInfinity;
#pragma unroll
  for (int s = 0; s < 4; ++s) {
    const int key = place.key + 4 * x + s;
    scores[s] *= p.scale;
    if (alibi) scores[s] = slope.apply(p, scores[s], key);
    if (!keys.holds(key)) scores[s] = -kInfinity;
    highest = fmaxf(highest, scores[s]);
  }
  highest = max_over_row(highest);
  // From here on in base 2 (attention.h, state of a row).
  const double far = slope.far * kLog2EInDouble;
  const float tile_max =
      alibi ? static_cast<float>(highest * kLog2EInDouble - far) : highest * kLog2E;
  const float new_max = fmaxf(tile_max, row_max);
  // Where nothing has been seen yet, any finite shift gives 2^-inf = 0.
  const float shift = new_max == -kInfinity ? 0.0f : new_max;
  const float near_shift = alibi ? static_cast<float>(shift + far) : shift;
  float sum = 0.0f;
#pragma unroll
  for (int s = 0; s < 4; ++s) {
    scores[s] = exp2f(fmaf(scores[s], kLog2E, -near_shift));
    sum += scores[s];
  }
  const float rescale = exp2f(row_max - shift);
  row_sum = fmaf(row_sum, rescale, sum_over_row(sum));
  row_max = new_max;
  return rescale;
}

// One block: kTile queries of one head.
template <typename T, int kWidth>
class ForwardBlock {
 public:
  __device__ ForwardBlock(const Forward<T>& call, Shared& shared, const StationaryTile& tile,
                          int head)
      : call_(call),
        p_(call.problem),
        shared_(shared),
        tile_(tile),
        head_(head),
        kv_head_(head / call.problem.group()),
        count_(min(kTile, call.problem.num_q - tile.row_begin)),
        run_(run_of_queries(call.problem)) {}

  __device__ void run() {
    for (int c0 = 0; c0 < p_.head_dim; c0 += kWidth) {
      State<kWidth> state;
      load(state, c0);
      for (int i = tile_.item_begin; i < tile_.item_end; ++i) {
        const SliceItem item = p_.schedule.items[i];
        if (kv_head_ < item.head_begin || kv_head_ >= item.head_end) continue;
        for (int t = item.begin; t < item.end; ++t) add_tile(state, item, t * kTile, c0);
      }
      // Of every width of dims the same, and read again by the next: written with the last.
      store(state, c0, c0 + kWidth >= p_.head_dim);
    }
  }

 private:
  __device__ std::int64_t row_stat(int r) const {
    return static_cast<std::int64_t>(head_) * p_.num_q + tile_.row_begin + r;
  }
  __device__ std::int64_t element(int r, int c) const {
    return (static_cast<std::int64_t>(tile_.row_begin + r) * p_.num_q_heads + head_) * p_.head_dim +
           c;
  }

  __device__ void load(State<kWidth>& state, int c0) const {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int row = 4 * y_ + r;
      const bool carried = !call_.first && row < count_;
      state.row_max[r] = carried ? call_.row_max[row_stat(row)] : -kInfinity;
      state.row_sum[r] = carried ? call_.row_sum[row_stat(row)] : 0.0f;
#pragma unroll
      for (int n = 0; n < kWidth / 16; ++n) {
        const int c = c0 + n / 4 * 64 + 4 * x_ + n % 4;
        state.acc[r][n] = carried && c < p_.head_dim ? call_.acc[element(row, c)] : 0.0f;
      }
    }
  }

  __device__ void store(const State<kWidth>& state, int c0, bool stats) const {
    __syncthreads();  // all threads of a row have read its old state
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int row = 4 * y_ + r;
      if (row >= count_) continue;
      // A row that saw no key: O = 0, L = -inf. (A NaN sum is not 0 and stays visible.)
      const float sum = state.row_sum[r], inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
#pragma unroll
      for (int n = 0; n < kWidth / 16; ++n) {
        const int c = c0 + n / 4 * 64 + 4 * x_ + n % 4;
        if (c >= p_.head_dim) continue;
        if (call_.last)
          call_.out[element(row, c)] = from_float<T>(state.acc[r][n] * inverse);
        else
          call_.acc[element(row, c)] = state.acc[r][n];
      }
      if (!stats || x_ != 0) continue;
      if (call_.last) {
        call_.lse[row_stat(row)] = sum == 0.0f ? -kInfinity : lse_of(state.row_max[r], sum);
      } else {
        call_.row_max[row_stat(row)] = state.row_max[r];
        call_.row_sum[row_stat(row)] = sum;
      }
    }
  }

  // Keys [key, key + kTile) of the item, for each run of queries that share a reference.
  __device__ void add_tile(State<kWidth>& state, const SliceItem& item, int key, int c0) {
    const int query = tile_.row_begin - item.q_begin, num_keys = min(kTile, item.k_len - key);
    const Rows<T> q = rows_of(call_.q, p_.num_q_heads, p_.head_dim, tile_.row_begin, count_, head_);
    const Rows<T> k = rows_of(call_.k, p_.num_kv_heads, p_.head_dim,
                              static_cast<std::int64_t>(item.k_begin) + key, num_keys, kv_head_);
    const Rows<T> v = {call_.v + (k.data - call_.k), k.stride, k.count};
    for (int first = 0; first < count_; first += run_) {
      const int end = min(first + run_, count_);
      if (query + end <= 0 || query + first >= item.q_len) continue;
      float scores[4][4];
      multiply_rows(scores, q, decay_of_queries(p_, run_), k,
                    decay_of_keys(p_, item, run_, query + first, key), p_.head_dim, shared_);
      const Place place = {query, key, head_, first, end};
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const float rescale =
            softmax_row(p_, item, place, 4 * y_ + r, scores[r], state.row_max[r], state.row_sum[r]);
#pragma unroll
        for (int n = 0; n < kWidth / 16; ++n) state.acc[r][n] *= rescale;
      }
      stage_weights(scores, shared_);
      add_weighted_rows<kWidth>(state.acc, v, Decay{}, c0, p_.head_dim, shared_);
    }
  }

  const Forward<T>& call_;
  const Problem& p_;
  Shared& shared_;
  const StationaryTile tile_;
  const int head_, kv_head_, count_, run_;
  const int y_ = static_cast<int>(threadIdx.x) / 16, x_ = static_cast<int>(threadIdx.x) % 16;
};

template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads, 2) any_shape_forward_kernel(const Forward<T> call) {
  __shared__ Shared shared;
  const int num_heads = call.problem.num_q_heads, block = static_cast<int>(blockIdx.x);
  ForwardBlock<T, kWidth>(call, shared, call.problem.schedule.tiles[block / num_heads],
                          block % num_heads)
      .run();
}

template <typename T, int kWidth>
void launch_forward(const Forward<T>& call, cudaStream_t stream) {
  const Problem& p = call.problem;
  launch(any_shape_forward_kernel<T, kWidth>,
         {.grid = static_cast<unsigned>(p.schedule.num_tiles) * p.num_q_heads,
          .block = kThreads,
          .stream = stream},
         call);
}

}  // namespace
}  // namespace any_shape

void attention_forward_any_shape(const AttentionForwardArgs& args, ScheduleCache& schedules,
                                 Stream& stream) {
  using namespace any_shape;
  Problem p = problem_of(args.q, args.k, args.scale, args.bias);
  if (args.q.numel() == 0) return;
  FARSPAN_CHECK(p.decay == nullptr || p.head_dim % 2 == 0, "xPos with head dim {}", p.head_dim);
  p.schedule = schedules.get(args.slices, schedule_shape(p, Stationary::kQueries), stream);
  with_compute_type(args.q.dtype, [&]<typename T>() {
    const Forward<T> call = {.problem = p,
                             .q = data<const T>(args.q),
                             .k = data<const T>(args.k),
                             .v = data<const T>(args.v),
                             .acc = data<float>(args.acc),
                             .row_max = data<float>(args.row_max),
                             .row_sum = data<float>(args.row_sum),
                             .out = data<T>(args.out),
                             .lse = data<float>(args.lse),
                             .first = args.first,
                             .last = args.last};
    if (p.head_dim <= 64)
      launch_forward<T, 64>(call, native(stream));
    else
      launch_forward<T, 128>(call, native(stream));
  });
}

}  // namespace farspan::cuda
