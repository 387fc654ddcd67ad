// Numbers on a device, for tests of any backend: made in double on the host, rounded to the dtype,
// copied over, and read back as double.
//
//   DeviceValues on(*backend);
//   Tensor x = on.put(random_values(T * C, seed), DType::kBF16, {T, C});
//   backend->kernels().rmsnorm_forward({...}, backend->stream());
//   std::vector<double> y = on.get(out);
#pragma once

#include <cstring>
#include <limits>
#include <list>
#include <vector>

#include "core/rng.h"
#include "kernels/backend.h"

namespace farspan::testing {

// Normal numbers, deviation `scale`.
inline std::vector<double> random_values(std::int64_t n, std::uint64_t seed, double scale = 1) {
  const CounterRng rng(seed, stream_id("test.values"));
  std::vector<double> values(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = scale * rng.normal(i);
  return values;
}

// Integers of [0, bound).
inline std::vector<double> random_integers(std::int64_t n, std::int64_t bound, std::uint64_t seed) {
  const CounterRng rng(seed, stream_id("test.integers"));
  std::vector<double> values(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<double>(rng.below(i, static_cast<std::uint64_t>(bound)));
  return values;
}

namespace detail {

// Calls visit(T{}) with the element type of a dtype.
template <typename Visit>
auto with_element(DType dtype, const Visit& visit) {
  switch (dtype) {
    case DType::kBF16:
      return visit(BFloat16{});
    case DType::kF64:
      return visit(double{});
    case DType::kI32:
      return visit(std::int32_t{});
    case DType::kI64:
      return visit(std::int64_t{});
    default:
      FARSPAN_CHECK(dtype == DType::kF32, "no test values of {}", name_of(dtype));
      return visit(float{});
  }
}

template <typename T>
T element(double value) {
  if constexpr (std::is_same_v<T, BFloat16>)
    return BFloat16(static_cast<float>(value));
  else
    return static_cast<T>(value);
}

template <typename T>
double as_double(T value) {
  if constexpr (std::is_same_v<T, BFloat16>)
    return static_cast<float>(value);
  else
    return static_cast<double>(value);
}

}  // namespace detail

// What the numbers become when stored as `dtype`.
inline std::vector<double> rounded(std::vector<double> values, DType dtype) {
  detail::with_element(dtype, [&]<typename T>(T) {
    for (double& v : values) v = detail::as_double(detail::element<T>(v));
  });
  return values;
}

class DeviceValues {
 public:
  explicit DeviceValues(Backend& backend) : backend_(backend) {}

  Tensor put(const std::vector<double>& values, DType dtype, Shape shape) {
    FARSPAN_CHECK(static_cast<std::int64_t>(values.size()) == shape.numel(), "{} values for {}",
                  values.size(), shape.to_string());
    std::vector<std::byte> host(values.size() * size_of(dtype));
    detail::with_element(dtype, [&]<typename T>(T) {
      for (std::size_t i = 0; i < values.size(); ++i) {
        const T value = detail::element<T>(values[i]);
        std::memcpy(host.data() + i * sizeof(T), &value, sizeof(T));
      }
    });
    return put_bytes(host, dtype, shape);
  }

  // An output: holds a value that no test expects, so that an unwritten element is seen.
  Tensor poisoned(DType dtype, Shape shape) {
    return put(std::vector<double>(static_cast<std::size_t>(shape.numel()), -12345.0), dtype,
               shape);
  }

  std::vector<double> get(const Tensor& t) {
    const std::vector<std::byte> host = bytes(t);
    std::vector<double> values(static_cast<std::size_t>(t.numel()));
    detail::with_element(t.dtype, [&]<typename T>(T) {
      for (std::size_t i = 0; i < values.size(); ++i) {
        T value;
        std::memcpy(&value, host.data() + i * sizeof(T), sizeof(T));
        values[i] = detail::as_double(value);
      }
    });
    return values;
  }

  std::vector<std::byte> bytes(const Tensor& t) {
    std::vector<std::byte> host(t.bytes());
    backend_.device().copy(host.data(), t.data, host.size(), backend_.stream());
    backend_.stream().synchronize();
    return host;
  }

  Tensor put_bytes(const std::vector<std::byte>& host, DType dtype, Shape shape) {
    // A page more than needed, so that a tensor without elements still has an address.
    buffers_.push_back(backend_.device().allocate(host.size() + 1));
    const Tensor t = buffers_.back().tensor(dtype, shape);
    backend_.device().copy(t.data, host.data(), host.size(), backend_.stream());
    backend_.stream().synchronize();
    return t;
  }

 private:
  Backend& backend_;
  std::list<Buffer> buffers_;
};

}  // namespace farspan::testing
