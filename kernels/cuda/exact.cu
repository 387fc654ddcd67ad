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
  long long high, low;
};

// The rest has no more bits than the term: the difference is exact, fused or not.
__device__ __forceinline__ Term split(double x) {
  const long long high = __double2ll_rn(x / kHighUnit);
  return {high, __double2ll_rn((x - static_cast<double>(high) * kHighUnit) / kLowUnit)};
}

template <typename T>
__global__ void add_terms_kernel(const T* src, Halves sum, std::int64_t n) {
  for (std::int64_t i = first_index(); i < n; i += stride()) {
    const double x = widened(src[i]);
    if (fabs(x) < kLimit) {  // false for NaN
      const Term term = split(x);
      sum.high[i] += static_cast<Word>(term.high);
      sum.low[i] += static_cast<Word>(term.low);
    } else {
      atomicAdd(sum.invalid, Word{1});
    }
  }
}

// Integer atomics: the same sum in any order. ids are in range (the data loader refuses others).
template <typename T>
__global__ void scatter_terms_kernel(const T* src, const std::int32_t* ids, Halves sum,
                                     std::int64_t c, std::int64_t n) {
  for (std::int64_t i = first_index(); i < n; i += stride()) {
    const double x = widened(src[i]);
    if (fabs(x) < kLimit) {
      const Term term = split(x);
      const std::int64_t to = ids[i / c] * c + i % c;
      atomicAdd(sum.high + to, static_cast<Word>(term.high));
      atomicAdd(sum.low + to, static_cast<Word>(term.low));
    } else {
      atomicAdd(sum.invalid, Word{1});
    }
  }
}

template <typename T>
__global__ void read_sums_kernel(const long long* high, const long long* low,
                                 const long long* invalid, T* dst, bool accumulate,
                                 std::int64_t n) {
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
  if (args.ids.defined())
    launch(scatter_terms_kernel<T>, linear(n, stream), data<T>(args.src),
           data<std::int32_t>(args.ids), sum, args.src.shape[1], n);
  else
    launch(add_terms_kernel<T>, linear(n, stream), data<T>(args.src), sum, n);
}

template <typename T>
void launch_read(const ExactReadArgs& args, cudaStream_t stream) {
  const std::int64_t n = args.dst.numel();
  launch(read_sums_kernel<T>, linear(n, stream), data<long long>(args.sum.high),
         data<long long>(args.sum.low), data<long long>(args.sum.invalid), data<T>(args.dst),
         args.mode == GradMode::kAccumulate, n);
}

}  // namespace

void exact_add(const ExactAddArgs& args, cudaStream_t stream) {
  if (args.src.numel() == 0) return;
  if (args.src.dtype == DType::kF64)
    launch_add<double>(args, stream);
  else
    with_compute_type(args.src.dtype, [&]<typename T>() { launch_add<T>(args, stream); });
}

void exact_read(const ExactReadArgs& args, cudaStream_t stream) {
  if (args.dst.numel() == 0) return;
  if (args.dst.dtype == DType::kF64)
    launch_read<double>(args, stream);
  else
    launch_read<float>(args, stream);
}

}  // namespace farspan::cuda
