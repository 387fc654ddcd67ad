#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/floats.cuh"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/reduce.cuh"

namespace farspan::cuda {
namespace {

constexpr int kMostThreads = 512;  // of one row
constexpr int kHeldPacks = 2;      // of a row in one thread's registers
constexpr int kRowsPerBlock = 4;   // where a warp is enough for a row
constexpr int kGroupBlocks = 3;    // of 256 threads on one multiprocessor, backward

// How many threads take one row, and whether they hold it in registers or read it again: decided by
// C alone, so that a row's bits do not depend on the others.
struct RowShape {
  unsigned threads;
  bool held;
};

template <typename T>
RowShape row_shape(std::int64_t c) {
  const std::int64_t packs = ceil_div(c, kPackWidth<T>);
  const auto threads = static_cast<unsigned>(std::bit_ceil(static_cast<std::uint64_t>(
      std::clamp<std::int64_t>(ceil_div(packs, kHeldPacks), kWarp, kMostThreads))));
  return {threads, packs <= static_cast<std::int64_t>(threads) * kHeldPacks};
}

dim3 block_of(const RowShape& shape) {
  return shape.threads == kWarp ? dim3(kWarp, kRowsPerBlock) : dim3(shape.threads);
}

// The sum over the threads of a row: those of one threadIdx.y. `turn` counts a block's rows.
__device__ __forceinline__ float row_sum(float x, int turn) {
  __shared__ float slots[2][kMostThreads / kWarp];
  return blockDim.x == kWarp ? warp_sum(x) : block_sum(x, slots[turn % 2]);
}

// How many packs of a row each thread takes.
template <typename T, bool kHeld>
__device__ __forceinline__ int packs_each(int c) {
  constexpr int kWidth = kPackWidth<T>;
  if constexpr (kHeld) return kHeldPacks;
  const int packs = (c + kWidth - 1) / kWidth, threads = static_cast<int>(blockDim.x);
  return (packs + threads - 1) / threads;
}

template <typename T>
__device__ __forceinline__ int column(int k) {
  return (k * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * kPackWidth<T>;
}

// ---- forward --------------------------------------------------------------------------------

template <typename T>
struct Forward {
  const T *x, *residual, *weight;  // residual: or nullptr
  T *sum, *y;
  float* rstd;
  std::int64_t rows;
  int c;
  float eps;
};

// x + residual, rounded as `add` rounds it; x itself where there is no residual.
template <typename T, bool kWhole, bool kResidual>
__device__ __forceinline__ uint4 load_term(const Forward<T>& f, std::int64_t offset, int col) {
  const uint4 pack = load_pack<T, kWhole>(f.x + offset, col, f.c);
  if (!kResidual) return pack;
  const Floats<kPackWidth<T>> a = floats_of<T>(pack);
  const Floats<kPackWidth<T>> b = floats_of<T>(load_pack<T, kWhole>(f.residual + offset, col, f.c));
  Floats<kPackWidth<T>> sum;
#pragma unroll
  for (int i = 0; i < kPackWidth<T>; ++i) sum.at[i] = a.at[i] + b.at[i];
  store_pack<T, kWhole>(f.sum + offset, col, f.c, sum);
  return pack_of<T>(sum);
}

template <typename T, bool kWhole, bool kHeld, bool kResidual>
__global__ void __launch_bounds__(kMostThreads) rmsnorm_forward_kernel(Forward<T> f) {
  constexpr int kWidth = kPackWidth<T>;
  const int packs = packs_each<T, kHeld>(f.c);
  int turn = 0;
  for (std::int64_t row = first_row(); row < f.rows; row += row_stride(), ++turn) {
    const std::int64_t offset = row * f.c;
    [[maybe_unused]] uint4 held[kHeldPacks];
    float squares = 0;
#pragma unroll
    for (int k = 0; k < packs; ++k) {
      const uint4 pack = load_term<T, kWhole, kResidual>(f, offset, column<T>(k));
      if constexpr (kHeld) held[k] = pack;
      const Floats<kWidth> x = floats_of<T>(pack);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) squares = fmaf(x.at[i], x.at[i], squares);
    }
    const float r = 1.0f / sqrtf(row_sum(squares, turn) / static_cast<float>(f.c) + f.eps);
    if (threadIdx.x == 0) f.rstd[row] = r;
#pragma unroll
    for (int k = 0; k < packs; ++k) {
      const int col = column<T>(k);
      uint4 pack;
      if constexpr (kHeld)
        pack = held[k];
      else  // written by this very thread where there is a sum
        pack = load_pack<T, kWhole>((kResidual ? f.sum : f.x) + offset, col, f.c);
      Floats<kWidth> x = floats_of<T>(pack);
      const Floats<kWidth> w = floats_of<T>(load_pack<T, kWhole>(f.weight, col, f.c));
#pragma unroll
      for (int i = 0; i < kWidth; ++i) x.at[i] = x.at[i] * r * w.at[i];
      store_pack<T, kWhole>(f.y + offset, col, f.c, x);
    }
  }
}

// ---- backward -------------------------------------------------------------------------------

template <typename T>
struct Backward {
  const T *x, *weight, *dy;
  const float* rstd;
  T* dx;            // may be dy
  float* partials;  // (groups, c)
  std::int64_t rows, rows_each, groups;
  int c;
};

// One row's packs of x and dy.
struct HeldRow {
  uint4 x[kHeldPacks], dy[kHeldPacks];
};

template <typename T, bool kWhole>
__device__ __forceinline__ void load_row(const Backward<T>& b, std::int64_t row, HeldRow* held) {
#pragma unroll
  for (int k = 0; k < kHeldPacks; ++k) {
    held->x[k] = load_pack<T, kWhole>(b.x + row * b.c, column<T>(k), b.c);
    held->dy[k] = load_pack<T, kWhole>(b.dy + row * b.c, column<T>(k), b.c);
  }
}

// This pack's part of sum(dy * weight * x).
template <typename T>
__device__ __forceinline__ float dot_of(uint4 x_pack, uint4 dy_pack, uint4 w_pack, float dot) {
  const auto x = floats_of<T>(x_pack), dy = floats_of<T>(dy_pack), w = floats_of<T>(w_pack);
#pragma unroll
  for (int i = 0; i < kPackWidth<T>; ++i) dot = fmaf(dy.at[i] * w.at[i], x.at[i], dot);
  return dot;
}

// Writes this pack of dx; dweight += dy * (x * rstd).
template <typename T, bool kWhole, bool kAccumulate>
__device__ __forceinline__ void finish_pack(const Backward<T>& b, std::int64_t row, int col,
                                            uint4 x_pack, uint4 dy_pack, uint4 w_pack, float r,
                                            float along, Floats<kPackWidth<T>>* dweight) {
  const auto x = floats_of<T>(x_pack), dy = floats_of<T>(dy_pack), w = floats_of<T>(w_pack);
  Floats<kPackWidth<T>> dx;
  if constexpr (kAccumulate) dx = floats_of<T>(load_pack<T, kWhole>(b.dx + row * b.c, col, b.c));
#pragma unroll
  for (int i = 0; i < kPackWidth<T>; ++i) {
    const float value = fmaf(-x.at[i], along, dy.at[i] * w.at[i]);
    dx.at[i] = kAccumulate ? fmaf(value, r, dx.at[i]) : value * r;
    dweight->at[i] = fmaf(dy.at[i], x.at[i] * r, dweight->at[i]);
  }
  store_pack<T, kWhole>(b.dx + row * b.c, col, b.c, dx);
}

template <int N>
__device__ __forceinline__ void write_partial(float* partial, int col, int c, const Floats<N>& x) {
#pragma unroll
  for (int i = 0; i < N; ++i)
    if (col + i < c) partial[col + i] = x.at[i];
}

// A group (the threads of one threadIdx.y) takes rows_each consecutive rows. The next row is on its
// way while this one is summed.
template <typename T, bool kWhole, bool kAccumulate, int kThreads>
__global__ void __launch_bounds__(kThreads, kThreads == kMostThreads ? 1 : kGroupBlocks)
    rmsnorm_backward_kernel(Backward<T> b) {
  const std::int64_t group = first_row();
  if (group >= b.groups) return;  // a whole warp of a block without barriers
  const std::int64_t begin = group * b.rows_each;
  const std::int64_t end = begin + b.rows_each < b.rows ? begin + b.rows_each : b.rows;
  Floats<kPackWidth<T>> dweight[kHeldPacks] = {};
  HeldRow now, next = {};
  load_row<T, kWhole>(b, begin, &now);
  for (std::int64_t row = begin; row < end; ++row, now = next) {
    if (row + 1 < end) load_row<T, kWhole>(b, row + 1, &next);
    float dot = 0;
#pragma unroll
    for (int k = 0; k < kHeldPacks; ++k)
      dot = dot_of<T>(now.x[k], now.dy[k], load_pack<T, kWhole>(b.weight, column<T>(k), b.c), dot);
    const float r = b.rstd[row];
    const float along =
        r * r * (row_sum(dot, static_cast<int>(row - begin)) / static_cast<float>(b.c));
#pragma unroll
    for (int k = 0; k < kHeldPacks; ++k)
      finish_pack<T, kWhole, kAccumulate>(b, row, column<T>(k), now.x[k], now.dy[k],
                                          load_pack<T, kWhole>(b.weight, column<T>(k), b.c), r,
                                          along, &dweight[k]);
  }
#pragma unroll
  for (int k = 0; k < kHeldPacks; ++k)
    write_partial(b.partials + group * b.c, column<T>(k), b.c, dweight[k]);
}

// Rows too long for registers: read twice, and the group's dweight is kept in its partial.
template <typename T, bool kWhole, bool kAccumulate>
__global__ void __launch_bounds__(kMostThreads) rmsnorm_backward_long_kernel(Backward<T> b) {
  constexpr int kWidth = kPackWidth<T>;
  const std::int64_t group = blockIdx.x;
  const std::int64_t begin = group * b.rows_each;
  const std::int64_t end = begin + b.rows_each < b.rows ? begin + b.rows_each : b.rows;
  const int packs = packs_each<T, false>(b.c);
  float* const partial = b.partials + group * b.c;
  for (std::int64_t row = begin; row < end; ++row) {
    const T *x_row = b.x + row * b.c, *dy_row = b.dy + row * b.c;
    float dot = 0;
    for (int k = 0; k < packs; ++k) {
      const int col = column<T>(k);
      dot = dot_of<T>(load_pack<T, kWhole>(x_row, col, b.c), load_pack<T, kWhole>(dy_row, col, b.c),
                      load_pack<T, kWhole>(b.weight, col, b.c), dot);
    }
    const float r = b.rstd[row];
    const float along =
        r * r * (row_sum(dot, static_cast<int>(row - begin)) / static_cast<float>(b.c));
    for (int k = 0; k < packs; ++k) {
      const int col = column<T>(k);
      Floats<kWidth> dweight = {};
      if (row > begin)
        for (int i = 0; i < kWidth; ++i)
          if (col + i < b.c) dweight.at[i] = partial[col + i];
      finish_pack<T, kWhole, kAccumulate>(b, row, col, load_pack<T, kWhole>(x_row, col, b.c),
                                          load_pack<T, kWhole>(dy_row, col, b.c),
                                          load_pack<T, kWhole>(b.weight, col, b.c), r, along,
                                          &dweight);
      write_partial(partial, col, b.c, dweight);
    }
  }
}

constexpr int kSumColumns = 32;
constexpr int kSumSlices = 8;

// dweight += the partials of all groups: in kSumSlices runs of consecutive groups, added in order.
__global__ void __launch_bounds__(kSumColumns* kSumSlices)
    add_partials_kernel(const float* partials, std::int64_t groups, std::int64_t c,
                        float* dweight) {
  __shared__ float sums[kSumSlices][kSumColumns];
  const std::int64_t col = static_cast<std::int64_t>(blockIdx.x) * kSumColumns + threadIdx.x;
  const std::int64_t each = (groups + kSumSlices - 1) / kSumSlices;
  const std::int64_t begin = threadIdx.y * each;
  const std::int64_t end = begin + each < groups ? begin + each : groups;
  float sum = 0;
  if (col < c) {
#pragma unroll 8
    for (std::int64_t g = begin; g < end; ++g) sum += partials[g * c + col];
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || col >= c) return;
  float total = 0;
  for (int slice = 0; slice < kSumSlices; ++slice) total += sums[slice][threadIdx.x];
  dweight[col] += total;
}

// Enough groups to fill the largest parts; few enough that their partials are little beside x.
std::int64_t rows_per_group(std::int64_t rows, const RowShape& shape) {
  constexpr std::int64_t kMinRows = 4;
  constexpr std::int64_t kProcessors = 132;
  const std::int64_t threads = shape.threads == kMostThreads ? kMostThreads : kGroupBlocks * kBlock;
  const std::int64_t groups = kProcessors * threads / shape.threads;
  return std::max(kMinRows, ceil_div(rows, groups));
}

template <typename T>
void launch_backward(const RmsNormBackwardArgs& args, Workspace& space, Stream& stream) {
  const std::int64_t rows = args.rstd.numel(), c = args.weight.numel();
  const RowShape shape = row_shape<T>(c);
  const std::int64_t rows_each = rows_per_group(rows, shape), groups = ceil_div(rows, rows_each);
  auto* const partials = reinterpret_cast<float*>(
      space.at_least(static_cast<std::size_t>(groups * c) * sizeof(float), stream));
  const Backward<T> b{.x = data<T>(args.x),
                      .weight = data<T>(args.weight),
                      .dy = data<T>(args.dy),
                      .rstd = data<float>(args.rstd),
                      .dx = data<T>(args.dx),
                      .partials = partials,
                      .rows = rows,
                      .rows_each = rows_each,
                      .groups = groups,
                      .c = static_cast<int>(c)};
  const dim3 block = block_of(shape);
  const LaunchShape where{.grid = static_cast<unsigned>(ceil_div(groups, block.y)),
                          .block = block,
                          .stream = native(stream)};
  const bool whole = c % kPackWidth<T> == 0 && aligned_to(16, {b.x, b.weight, b.dy, b.dx});
  with_flag(whole, [&]<bool kWhole>() {
    with_flag(args.dx_mode == GradMode::kAccumulate, [&]<bool kAccumulate>() {
      if (!shape.held)
        launch(rmsnorm_backward_long_kernel<T, kWhole, kAccumulate>, where, b);
      else if (!kWhole || shape.threads == kMostThreads)
        launch(rmsnorm_backward_kernel<T, kWhole, kAccumulate, kMostThreads>, where, b);
      else
        launch(rmsnorm_backward_kernel<T, true, kAccumulate, kBlock>, where, b);
    });
  });
  launch(add_partials_kernel,
         {.grid = static_cast<unsigned>(ceil_div(c, kSumColumns)),
          .block = dim3(kSumColumns, kSumSlices),
          .stream = native(stream)},
         partials, groups, c, data<float>(args.dweight));
}

}  // namespace

void rmsnorm_forward(const RmsNormForwardArgs& args, Stream& stream) {
  const std::int64_t rows = args.rstd.numel(), c = args.weight.numel();
  if (rows == 0) return;
  const bool residual = args.residual.defined();
  with_compute_type(args.x.dtype, [&]<typename T>() {
    const Forward<T> f{.x = data<T>(args.x),
                       .residual = data<T>(args.residual),
                       .weight = data<T>(args.weight),
                       .sum = data<T>(args.sum),
                       .y = data<T>(args.y),
                       .rstd = data<float>(args.rstd),
                       .rows = rows,
                       .c = static_cast<int>(c),
                       .eps = args.eps};
    const RowShape shape = row_shape<T>(c);
    const dim3 block = block_of(shape);
    const LaunchShape where{
        .grid = static_cast<unsigned>(std::min(kMostBlocks, ceil_div(rows, block.y))),
        .block = block,
        .stream = native(stream)};
    const bool whole =
        c % kPackWidth<T> == 0 && aligned_to(16, {f.x, f.residual, f.weight, f.sum, f.y});
    with_flag(whole, [&]<bool kWhole>() {
      with_flag(shape.held, [&]<bool kHeld>() {
        with_flag(residual, [&]<bool kResidual>() {
          launch(rmsnorm_forward_kernel<T, kWhole, kHeld, kResidual>, where, f);
        });
      });
    });
  });
}

void rmsnorm_backward(const RmsNormBackwardArgs& args, Workspace& space, Stream& stream) {
  if (args.rstd.numel() == 0 || args.weight.numel() == 0) return;
  with_compute_type(args.x.dtype, [&]<typename T>() { launch_backward<T>(args, space, stream); });
}

}  // namespace farspan::cuda
