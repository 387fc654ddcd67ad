#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/exact.h"
#include "kernels/cuda/launch.cuh"

namespace farspan::cuda {
namespace {

constexpr double kHighUnit = 0x1p-20;
constexpr double kLowUnit = 0x1p-60;
constexpr double kLimit = 0x1p20;
constexpr long long kLowPerHigh = 1ll << 40;

using Word = unsigned long long;  // what atomicAdd takes; two's complement adds the same

struct Halves {
  Word *high, *low, *invalid;
};

__device__ __forceinline__ double widened(float x) { return x; }
__device__ __forceinline__ double widened(double x) { return x; }
__device__ __forceinline__ double widened(bf16 x) { return __bfloat162float(x); }

struct Term {
  Word high, low;
  Word invalid;
};

// The rest has no more bits than the term: the difference is exact, fused or not. What has no place
// becomes 0 and is counted.
__device__ __forceinline__ Term split(double given) {
  const bool valid = fabs(given) < kLimit;  // false for NaN
  const double x = valid ? given : 0.0;
  const long long high = __double2ll_rn(x * (1 / kHighUnit));
  const long long low =
      __double2ll_rn((x - static_cast<double>(high) * kHighUnit) * (1 / kLowUnit));
  return {static_cast<Word>(high), static_cast<Word>(low), valid ? Word{0} : Word{1}};
}

// All loads of several elements come before their stores, so that they are under way together.
template <typename T>
__global__ void __launch_bounds__(kBlock)
    add_terms_kernel(const T* src, Halves sum, std::int64_t n) {
  constexpr int kDeep = 4;
  const std::int64_t step = stride();
  Word invalid = 0;
  for (std::int64_t first = first_index(); first < n; first += kDeep * step) {
    Term terms[kDeep];
#pragma unroll
    for (int j = 0; j < kDeep; ++j)
      if (const std::int64_t i = first + j * step; i < n) {
        terms[j] = split(widened(src[i]));
        terms[j].high += sum.high[i];
        terms[j].low += sum.low[i];
      }
#pragma unroll
    for (int j = 0; j < kDeep; ++j)
      if (const std::int64_t i = first + j * step; i < n) {
        sum.high[i] = terms[j].high;
        sum.low[i] = terms[j].low;
        invalid += terms[j].invalid;
      }
  }
  if (invalid > 0) atomicAdd(sum.invalid, invalid);
}

// Integer atomics: the same sum in any order. A row whose id is none of the sum's counts as
// invalid.
template <typename T>
__global__ void __launch_bounds__(kBlock)
    scatter_terms_kernel(const T* src, const std::int32_t* ids, Halves sum, std::int64_t tokens,
                         std::int64_t rows, std::int64_t c) {
  Word invalid = 0;
  for (std::int64_t t = first_row(); t < tokens; t += row_stride()) {
    const std::int64_t id = ids[t];
    const bool present = id >= 0 && id < rows;
    for (std::int64_t col = first_col(); col < c; col += col_stride()) {
      const Term term = split(widened(src[t * c + col]));
      invalid += present ? term.invalid : Word{1};
      if (!present || term.invalid != 0) continue;
      atomicAdd(sum.high + id * c + col, term.high);
      atomicAdd(sum.low + id * c + col, term.low);
    }
  }
  if (invalid > 0) atomicAdd(sum.invalid, invalid);
}

template <typename T>
__global__ void __launch_bounds__(kBlock)
    read_sums_kernel(const long long* high, const long long* low, const long long* invalid, T* dst,
                     bool accumulate, std::int64_t n) {
  const bool valid = *invalid == 0;
  for (std::int64_t i = first_index(); i < n; i += stride()) {
    const long long carry = (low[i] + kLowPerHigh / 2) >> 40;
    // Products with powers of two: exact, so fusing them changes nothing.
    const double value = static_cast<double>(high[i] + carry) * kHighUnit +
                         static_cast<double>(low[i] - carry * kLowPerHigh) * kLowUnit;
    const double sum = valid ? value : nan("");
    dst[i] = static_cast<T>(accumulate ? static_cast<double>(dst[i]) + sum : sum);
  }
}

template <typename T>
void launch_add(const ExactAddArgs& args, cudaStream_t stream) {
  const std::int64_t n = args.src.numel();
  const Halves sum{data<Word>(args.sum.high), data<Word>(args.sum.low),
                   data<Word>(args.sum.invalid)};
  if (!args.ids.defined()) {
    launch(add_terms_kernel<T>, linear(n, stream), data<T>(args.src), sum, n);
    return;
  }
  const std::int64_t tokens = args.src.shape[0], c = args.src.shape[1];
  launch(scatter_terms_kernel<T>, by_rows(tokens, c, stream), data<T>(args.src),
         data<std::int32_t>(args.ids), sum, tokens, args.sum.high.numel() / c, c);
}

template <typename T>
void launch_read(const ExactReadArgs& args, cudaStream_t stream) {
  const std::int64_t n = args.dst.numel();
  launch(read_sums_kernel<T>, linear(n, stream), data<long long>(args.sum.high),
         data<long long>(args.sum.low), data<long long>(args.sum.invalid), data<T>(args.dst),
         args.mode == GradMode::kAccumulate, n);
}

// Elements of a product that are added before the next are computed: with their sums, 20 MiB, they
// stay in the second cache from block to block.
constexpr std::int64_t kTileElements = 1 << 20;
// Rows of a tile: a's columns, of which a multiple of 8 keeps the operands' alignment.
constexpr std::int64_t kTileRowUnit = 8;

}  // namespace

void exact_add(const ExactAddArgs& args, cudaStream_t stream) {
  if (args.src.numel() == 0) return;
  if (args.src.dtype == DType::kF64)
    launch_add<double>(args, stream);
  else
    with_compute_type(args.src.dtype, [&]<typename T>() { launch_add<T>(args, stream); });
}

void exact_matmul(const ExactMatmulArgs& args, Matmul& matmul, Workspace& space, Stream& stream) {
  const std::int64_t m = args.a.shape[1], n = args.b.shape[1];
  if (m == 0 || n == 0) return;
  const std::int64_t tile_rows =
      std::min(m, std::max(kTileRowUnit, kTileElements / n / kTileRowUnit * kTileRowUnit));
  const Tensor tile{
      .data = space.at_least(static_cast<std::size_t>(tile_rows * n) * sizeof(float), stream),
      .dtype = DType::kF32,
      .shape = {tile_rows * n},
      .device = args.a.device};
  const Tensor high = args.sum.high.view({m * n}), low = args.sum.low.view({m * n});
  const auto element = static_cast<std::int64_t>(size_of(args.a.dtype));
  for (std::int64_t row = 0; row < m; row += tile_rows) {
    const std::int64_t count = std::min(tile_rows, m - row);
    const Tensor terms = tile.rows(0, count * n);
    for (std::size_t i = 0; i + 1 < args.row_blocks.size(); ++i) {
      const std::int64_t begin = args.row_blocks[i], k = args.row_blocks[i + 1] - begin;
      if (k == 0) continue;
      matmul.multiply({.a = args.a.data + (begin * m + row) * element,
                       .b = args.b.data + begin * n * element,
                       .out = terms.data,
                       .m = count,
                       .n = n,
                       .k = k,
                       .ld_a = m,
                       .ld_b = n,
                       .trans_a = true,
                       .in = args.a.dtype,
                       .to = DType::kF32,
                       .anywhere = true},
                      stream);
      exact_add(
          {.src = terms,
           .ids = {},
           .sum = {high.rows(row * n, count * n), low.rows(row * n, count * n), args.sum.invalid}},
          native(stream));
    }
  }
}

void exact_read(const ExactReadArgs& args, cudaStream_t stream) {
  if (args.dst.numel() == 0) return;
  if (args.dst.dtype == DType::kF64)
    launch_read<double>(args, stream);
  else
    launch_read<float>(args, stream);
}

}  // namespace farspan::cuda
