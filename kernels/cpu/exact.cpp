// Sums that do not depend on the order of their terms (ExactSum in kernels/args.h).
#include "kernels/cpu/exact.h"

#include <atomic>
#include <bit>
#include <cmath>

#include "kernels/cpu/state.h"

namespace farspan::cpu {
namespace {

constexpr double kHighUnit = 0x1p-20;
constexpr double kLowUnit = 0x1p-60;
constexpr double kLimit = 0x1p20;
constexpr std::int64_t kLowPerHigh = std::int64_t{1} << 40;

inline double widened(float x) { return x; }
inline double widened(double x) { return x; }
inline double widened(std::uint16_t bf16) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bf16) << 16);
}

// rint(x) for |x| < 2^51: added to 1.5 * 2^52, a number's last bit counts ones. Unlike a conversion
// it exists as a vector instruction on every x86-64.
inline std::int64_t nearest(double x) {
  constexpr double kShift = 0x1.8p52;
  return std::bit_cast<std::int64_t>(x + kShift) - std::bit_cast<std::int64_t>(kShift);
}

// Adds x[0, n) to the two halves; returns how many are invalid.
template <typename T>
std::int64_t add_terms(const T* x, std::int64_t* high, std::int64_t* low, std::int64_t n) {
  std::int64_t invalid = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const double given = widened(x[i]);
    const bool valid = std::fabs(given) < kLimit;  // false for NaN
    const double term = valid ? given : 0.0;
    const std::int64_t top = nearest(term / kHighUnit);
    high[i] += top;
    // The rest has no more bits than the term: the difference is exact, fused or not.
    low[i] += nearest((term - static_cast<double>(top) * kHighUnit) / kLowUnit);
    invalid += valid ? 0 : 1;
  }
  return invalid;
}

// Calls body(T{}) with the element type of a dtype that has terms.
template <typename Body>
void by_term_type(DType dtype, const Body& body) {
  if (dtype == DType::kF64)
    body(double{});
  else if (dtype == DType::kF32)
    body(float{});
  else
    body(std::uint16_t{});
}

// The two halves as one number. The part of `low` that belongs to `high` is moved there first, so
// that the result is rounded once as long as the sum is below 2^33.
inline double value_of(std::int64_t high, std::int64_t low) {
  const std::int64_t carry = (low + kLowPerHigh / 2) >> 40;
  return static_cast<double>(high + carry) * kHighUnit +
         static_cast<double>(low - carry * kLowPerHigh) * kLowUnit;
}

template <typename T>
void read_sums(const ExactReadArgs& args, bool valid, std::int64_t begin, std::int64_t end) {
  T* dst = args.dst.ptr<T>();
  const std::int64_t* high = args.sum.high.ptr<std::int64_t>();
  const std::int64_t* low = args.sum.low.ptr<std::int64_t>();
  for (std::int64_t i = begin; i < end; ++i) {
    const double sum = valid ? value_of(high[i], low[i]) : std::nan("");
    dst[i] = static_cast<T>(args.mode == GradMode::kAccumulate ? static_cast<double>(dst[i]) + sum
                                                               : sum);
  }
}

void check_ids(const Tensor& ids, std::int64_t num_rows) {
  const std::int32_t* p = ids.ptr<std::int32_t>();
  std::int64_t bad = -1;
  for (std::int64_t t = 0; t < ids.numel(); ++t)
    if (p[t] < 0 || p[t] >= num_rows) bad = t;
  FARSPAN_CHECK(bad < 0, "exact_add: id {} at {} is not a row of a sum of {}", p[bad], bad,
                num_rows);
}

}  // namespace

std::int64_t add_exact_terms(const float* x, std::int64_t* high, std::int64_t* low,
                             std::int64_t n) {
  return add_terms(x, high, low, n);
}

void CpuKernels::exact_matmul(const ExactMatmulArgs& args, Stream&) { impl_->matmul.run(args); }

// With ids, work is cut into columns, and into ids where columns are too few: each element of the
// sum belongs to one thread.
void CpuKernels::exact_add(const ExactAddArgs& args, Stream&) {
  std::int64_t* high = args.sum.high.ptr<std::int64_t>();
  std::int64_t* low = args.sum.low.ptr<std::int64_t>();
  std::atomic_ref<std::int64_t> invalid(*args.sum.invalid.ptr<std::int64_t>());
  const auto count = [&](std::int64_t found) {
    if (found > 0) invalid.fetch_add(found, std::memory_order_relaxed);
  };
  by_term_type(args.src.dtype, [&]<typename T>(T) {
    const T* src = raw<T>(args.src);
    if (!args.ids.defined()) {
      impl_->over_elements(args.src.numel(), [&](std::int64_t begin, std::int64_t end) {
        count(add_terms(src + begin, high + begin, low + begin, end - begin));
      });
      return;
    }
    const std::int64_t tokens = args.src.shape[0];
    const std::int64_t c = args.src.shape[1];
    if (tokens == 0 || c == 0) return;
    check_ids(args.ids, args.sum.high.numel() / c);
    const std::int32_t* ids = args.ids.ptr<std::int32_t>();
    impl_->over_parts(tokens, c, [&](const CpuKernels::Impl::Part& part) {
      for (std::int64_t t = 0; t < tokens; ++t)
        if (ids[t] % part.num_ids == part.id) {
          const std::int64_t to = ids[t] * c + part.begin;
          count(add_terms(src + t * c + part.begin, high + to, low + to, part.end - part.begin));
        }
    });
  });
}

void CpuKernels::exact_read(const ExactReadArgs& args, Stream&) {
  const bool valid = *args.sum.invalid.ptr<std::int64_t>() == 0;
  impl_->over_elements(args.dst.numel(), [&](std::int64_t begin, std::int64_t end) {
    if (args.dst.dtype == DType::kF64)
      read_sums<double>(args, valid, begin, end);
    else
      read_sums<float>(args, valid, begin, end);
  });
}

}  // namespace farspan::cpu
