// A block takes a row. The first pass finds the row's maximum and its sum of exponentials together,
// rescaling the sum where the maximum grows (Milakov & Gimelshein 2018), and keeps as much of the
// row as fits in shared memory; the second writes the gradient, from the row's end backwards, so
// that what must be read again is what the second cache saw last.
#include <limits>

#include "kernels/cuda/cross_entropy.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/floats.cuh"
#include "kernels/cuda/reduce.cuh"

namespace farspan::cuda {
namespace {

constexpr int kWidth = 4;  // logits of one pack
constexpr int kDeep = 4;   // packs of one thread under way at once
constexpr int kMostThreads = 1024;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Rows {
  const float* logits;
  const std::int32_t* labels;
  float* nll;          // or nullptr
  double* row_nll;     // (N) workspace
  int v, packs, kept;  // of a row: logits, packs of them, packs kept in shared memory
};

// Pack `p` of a row; -inf beyond its end, which adds nothing.
template <bool kWhole>
__device__ __forceinline__ Floats<kWidth> load_logits(const float* row, int p, int v) {
  if constexpr (kWhole) {
    return load_floats<kWidth>(row + p * kWidth);
  } else {
    Floats<kWidth> x;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const int col = p * kWidth + i;
      x.at[i] = col < v ? row[col] : -kInfinity;
    }
    return x;
  }
}

template <bool kWhole, typename T>
__device__ __forceinline__ void store_gradient(T* row, int p, int v, const Floats<kWidth>& x) {
  if constexpr (kWhole) {
    store_floats(row + p * kWidth, x);
  } else {
#pragma unroll
    for (int i = 0; i < kWidth; ++i)
      if (p * kWidth + i < v) row[p * kWidth + i] = from_float<T>(x.at[i]);
  }
}

// The maximum m of what was seen, and the sum of e^(x - m). A NaN makes the sum NaN.
struct Exponentials {
  float top = -kInfinity, sum = 0;

  __device__ __forceinline__ void add(const Floats<kWidth>& x) {
    const float here = fmaxf(fmaxf(x.at[0], x.at[1]), fmaxf(x.at[2], x.at[3]));
    if (here > top) {
      sum *= expf(top - here);
      top = here;
    }
    // Before any number but -inf was seen, -inf - top would be NaN.
    const float base = top == -kInfinity ? 0.0f : top;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sum += expf(x.at[i] - base);
  }
};

template <bool kWhole, bool kKeep>
__device__ __forceinline__ Exponentials first_pass(const Rows& r, const float* row, float4* kept) {
  Exponentials found;
  const int threads = static_cast<int>(blockDim.x);
  for (int first = static_cast<int>(threadIdx.x); first < r.packs; first += kDeep * threads) {
    Floats<kWidth> x[kDeep];
#pragma unroll
    for (int j = 0; j < kDeep; ++j)
      if (const int p = first + j * threads; p < r.packs) x[j] = load_logits<kWhole>(row, p, r.v);
#pragma unroll
    for (int j = 0; j < kDeep; ++j) {
      const int p = first + j * threads;
      if (p >= r.packs) continue;
      if (kKeep && p < r.kept)
        kept[p] = make_float4(x[j].at[0], x[j].at[1], x[j].at[2], x[j].at[3]);
      found.add(x[j]);
    }
  }
  return found;
}

struct Softmax {
  float top, inverse;
  int label;
};

// Packs are those that this very thread kept, or read, in the first pass: dlogits may be logits.
template <bool kWhole, typename T>
__device__ __forceinline__ void second_pass(const Rows& r, const float* row, T* dlogits,
                                            const float4* kept, const Softmax& s) {
  const int threads = static_cast<int>(blockDim.x);
  const int first = static_cast<int>(threadIdx.x);
  const int each = (r.packs + threads - 1) / threads;
  for (int last = each - 1; last >= 0; last -= kDeep) {
    Floats<kWidth> x[kDeep];
#pragma unroll
    for (int j = 0; j < kDeep; ++j) {
      const int p = first + (last - j) * threads;
      if (p < first || p >= r.packs) continue;
      if (p < r.kept) {
        const float4 four = kept[p];
        x[j] = {{four.x, four.y, four.z, four.w}};
      } else {
        x[j] = load_logits<kWhole>(row, p, r.v);
      }
    }
#pragma unroll
    for (int j = 0; j < kDeep; ++j) {
      const int p = first + (last - j) * threads;
      if (p < first || p >= r.packs) continue;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const float e = expf(x[j].at[i] - s.top);
        x[j].at[i] = p * kWidth + i == s.label ? fmaf(e, s.inverse, -1.0f) : e * s.inverse;
      }
      store_gradient<kWhole>(dlogits, p, r.v, x[j]);
    }
  }
}

template <bool kWhole, typename T>
__device__ __forceinline__ void zero_row(T* dlogits, const Rows& r) {
  for (int p = static_cast<int>(threadIdx.x); p < r.packs; p += static_cast<int>(blockDim.x))
    store_gradient<kWhole>(dlogits, p, r.v, Floats<kWidth>{});
}

template <typename T, bool kWhole, bool kGradient>
__global__ void __launch_bounds__(kMostThreads) cross_entropy_kernel(Rows r, T* dlogits) {
  __shared__ float tops[kMostThreads / kWarp];
  __shared__ double sums[kMostThreads / kWarp];
  float4* const kept = shared_memory<float4>();
  const std::int64_t n = blockIdx.x;
  const float* const row = r.logits + n * r.v;
  const int label = r.labels[n];
  if (label < 0) {
    if constexpr (kGradient) zero_row<kWhole>(dlogits + n * r.v, r);
    if (threadIdx.x == 0 && r.nll != nullptr) r.nll[n] = nanf("");
    return;
  }
  // Before the second pass may write it.
  const double at_label = label < r.v ? static_cast<double>(row[label]) : nan("");
  const Exponentials found = first_pass<kWhole, kGradient>(r, row, kept);
  const float top = block_max(found.top, tops);
  const double total =
      block_sum(static_cast<double>(found.sum) * static_cast<double>(expf(found.top - top)), sums);
  if (threadIdx.x == 0) {
    const double nll = log(total) + (static_cast<double>(top) - at_label);
    r.row_nll[n] = nll;
    if (r.nll != nullptr) r.nll[n] = static_cast<float>(nll);
  }
  if constexpr (kGradient)
    second_pass<kWhole>(r, row, dlogits + n * r.v, kept,
                        {top, static_cast<float>(1.0 / total), label});
}

__global__ void __launch_bounds__(kMostThreads)
    add_rows_kernel(const double* row_nll, const std::int32_t* labels, std::int64_t n,
                    double* loss_sum, double* valid_count) {
  __shared__ double losses[kMostThreads / kWarp];
  __shared__ double counts[kMostThreads / kWarp];
  double loss = 0, count = 0;
  for (std::int64_t i = threadIdx.x; i < n; i += blockDim.x)
    if (labels[i] >= 0) {
      loss += row_nll[i];
      count += 1;
    }
  const double all_loss = block_sum(loss, losses), all_count = block_sum(count, counts);
  if (threadIdx.x != 0) return;
  *loss_sum += all_loss;
  *valid_count += all_count;
}

// By V alone. Two blocks of 512 threads share a multiprocessor as long as most of two rows fits its
// shared memory; beyond that one block keeps all it can, so that fewer rows compete for the cache.
unsigned threads_of(std::int64_t v) {
  constexpr std::int64_t kLongRow = 50 << 10;
  const std::int64_t wanted = ceil_div(v, kWidth * kDeep);
  const std::int64_t most = v <= kLongRow ? kMostThreads / 2 : kMostThreads;
  return static_cast<unsigned>(
      std::bit_ceil(static_cast<std::uint64_t>(std::clamp<std::int64_t>(wanted, 2 * kWarp, most))));
}

// Shared memory, static included, that blocks of this many threads may use.
std::size_t kept_bytes(unsigned threads, std::int64_t packs, std::size_t most_shared) {
  constexpr std::size_t kReserved = 2 << 10;  // what CUDA takes of each block, and the sums
  const std::size_t share = threads == kMostThreads ? most_shared : most_shared / 2;
  const std::size_t most = (share - kReserved) / sizeof(float4);
  return std::min(most, static_cast<std::size_t>(packs)) * sizeof(float4);
}

template <typename T, bool kGradient>
void launch_rows(const CrossEntropyArgs& args, const Rows& rows, std::size_t most_shared,
                 cudaStream_t stream) {
  auto* const dlogits = data<T>(args.dlogits);
  const unsigned threads = threads_of(rows.v);
  const std::size_t shared = kGradient ? kept_bytes(threads, rows.packs, most_shared) : 0;
  Rows r = rows;
  r.kept = static_cast<int>(shared / sizeof(float4));
  const bool whole =
      r.v % kWidth == 0 && aligned_to(16, {r.logits}) && aligned_to(kWidth * sizeof(T), {dlogits});
  with_flag(whole, [&]<bool kWhole>() {
    launch(cross_entropy_kernel<T, kWhole, kGradient>,
           {.grid = static_cast<unsigned>(args.logits.shape[0]),
            .block = threads,
            .shared_bytes = shared,
            .stream = stream},
           r, dlogits);
  });
}

}  // namespace

void cross_entropy(const CrossEntropyArgs& args, std::size_t most_shared, Workspace& space,
                   Stream& stream) {
  const std::int64_t n = args.logits.shape[0], v = args.logits.shape[1];
  if (n == 0 || v == 0) return;
  FARSPAN_CHECK(v < std::int64_t{1} << 30 && n < std::int64_t{1} << 31, "cross_entropy of {}",
                args.logits.to_string());
  const cudaStream_t queue = native(stream);
  auto* const row_nll = reinterpret_cast<double*>(
      space.at_least(static_cast<std::size_t>(n) * sizeof(double), stream));
  const Rows rows{.logits = data<float>(args.logits),
                  .labels = data<std::int32_t>(args.labels),
                  .nll = args.nll.defined() ? data<float>(args.nll) : nullptr,
                  .row_nll = row_nll,
                  .v = static_cast<int>(v),
                  .packs = static_cast<int>(ceil_div(v, kWidth)),
                  .kept = 0};
  if (!args.dlogits.defined())
    launch_rows<float, false>(args, rows, most_shared, queue);
  else if (args.dlogits.dtype == DType::kBF16)
    launch_rows<bf16, true>(args, rows, most_shared, queue);
  else
    launch_rows<float, true>(args, rows, most_shared, queue);
  launch(add_rows_kernel, {.block = kMostThreads, .stream = queue}, row_nll, rows.labels, n,
         data<double>(args.loss_sum), data<double>(args.valid_count));
}

}  // namespace farspan::cuda
