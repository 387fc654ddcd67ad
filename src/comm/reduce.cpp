#include "comm/reduce.h"

#include <algorithm>
#include <type_traits>

namespace farspan {
namespace {

// Elements of the running result kept in the first-level cache while the sources stream by.
constexpr std::int64_t kBlock = 1024;

struct Sum {
  template <typename T>
  static T apply(T a, T b) {
    if constexpr (std::is_integral_v<T>) {
      using U = std::make_unsigned_t<T>;
      return static_cast<T>(static_cast<U>(a) + static_cast<U>(b));
    } else {
      return a + b;
    }
  }
};
// b != b: a NaN from any rank stays, so that a guard that takes a maximum sees it.
struct Max {
  template <typename T>
  static T apply(T a, T b) {
    return (a < b || b != b) ? b : a;
  }
};
struct Min {
  template <typename T>
  static T apply(T a, T b) {
    return (b < a || b != b) ? b : a;
  }
};

template <typename Stored, typename Wide, typename Op>
void reduce_blocks(std::span<const std::byte* const> sources, std::byte* out, std::int64_t count) {
  Wide sum[kBlock];
  for (std::int64_t begin = 0; begin < count; begin += kBlock) {
    const std::int64_t n = std::min(kBlock, count - begin);
    const auto* first = reinterpret_cast<const Stored*>(sources[0]) + begin;
    for (std::int64_t i = 0; i < n; ++i) sum[i] = static_cast<Wide>(first[i]);
    for (std::size_t s = 1; s < sources.size(); ++s) {
      const auto* next = reinterpret_cast<const Stored*>(sources[s]) + begin;
      for (std::int64_t i = 0; i < n; ++i)
        sum[i] = Op::template apply<Wide>(sum[i], static_cast<Wide>(next[i]));
    }
    auto* result = reinterpret_cast<Stored*>(out) + begin;
    for (std::int64_t i = 0; i < n; ++i) result[i] = static_cast<Stored>(sum[i]);
  }
}

template <typename Stored, typename Wide>
void reduce_by_op(ReduceOp op, std::span<const std::byte* const> sources, std::byte* out,
                  std::int64_t count) {
  switch (op) {
    case ReduceOp::kSum:
      return reduce_blocks<Stored, Wide, Sum>(sources, out, count);
    case ReduceOp::kMax:
      return reduce_blocks<Stored, Wide, Max>(sources, out, count);
    case ReduceOp::kMin:
      return reduce_blocks<Stored, Wide, Min>(sources, out, count);
  }
}

}  // namespace

bool is_reducible(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF64 || dtype == DType::kBF16 ||
         dtype == DType::kI32 || dtype == DType::kI64;
}

void reduce_in_order(DType dtype, ReduceOp op, std::span<const std::byte* const> sources,
                     std::byte* out, std::int64_t count) {
  FARSPAN_CHECK(!sources.empty());
  switch (dtype) {
    case DType::kF32:
      return reduce_by_op<float, float>(op, sources, out, count);
    case DType::kF64:
      return reduce_by_op<double, double>(op, sources, out, count);
    case DType::kBF16:
      return reduce_by_op<BFloat16, float>(op, sources, out, count);
    case DType::kI32:
      return reduce_by_op<std::int32_t, std::int32_t>(op, sources, out, count);
    case DType::kI64:
      return reduce_by_op<std::int64_t, std::int64_t>(op, sources, out, count);
    default:
      FARSPAN_CHECK(false, "no reduction of {}", name_of(dtype));
  }
}

}  // namespace farspan
