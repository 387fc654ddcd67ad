// Random numbers in a device's memory: products of zeros run faster than real ones.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/rng.h"
#include "kernels/backend.h"

namespace farspan::bench {

// Normal numbers (f32, bf16), integers of [0, bound) (i32), zeros (other dtypes). The first million
// repeat themselves.
inline void fill_random(const Tensor& t, Backend& backend, std::uint64_t seed,
                        std::int64_t bound = 1) {
  if (t.empty()) return;
  const CounterRng rng(seed, stream_id("bench.fill"));
  const std::size_t size = size_of(t.dtype), count = static_cast<std::size_t>(t.numel());
  const std::size_t distinct = std::min<std::size_t>(count, std::size_t{1} << 20);
  std::vector<std::byte> host(distinct * size);  // zeros
  for (std::size_t i = 0; i < distinct; ++i) {
    if (t.dtype == DType::kF32) {
      const auto x = static_cast<float>(rng.normal(i));
      std::memcpy(host.data() + i * size, &x, size);
    } else if (t.dtype == DType::kBF16) {
      const BFloat16 x(static_cast<float>(rng.normal(i)));
      std::memcpy(host.data() + i * size, &x, size);
    } else if (t.dtype == DType::kI32) {
      const auto x = static_cast<std::int32_t>(rng.below(i, static_cast<std::uint64_t>(bound)));
      std::memcpy(host.data() + i * size, &x, size);
    }
  }
  backend.device().copy(t.data, host.data(), host.size(), backend.stream());
  for (std::size_t done = host.size(); done < t.bytes();) {  // doubling
    const std::size_t more = std::min(done, t.bytes() - done);
    backend.device().copy(t.data + done, t.data, more, backend.stream());
    done += more;
  }
  backend.stream().synchronize();
}

}  // namespace farspan::bench
