// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
// 1, 2, 3", SC'11). A draw is a pure function of (seed, stream, counter), so every rank agrees
// without communication, and resharding or resuming changes nothing.
//
//   CounterRng rng(seed, stream_id("data.permutation", epoch));
//   double u = rng.uniform(i);           // the i-th draw, in [0, 1)
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace farspan {

std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter,
                                        std::array<std::uint32_t, 2> key);

// A 64-bit stream number from a purpose and up to two numbers (FNV-1a, then mixed).
std::uint64_t stream_id(std::string_view purpose, std::uint64_t a = 0, std::uint64_t b = 0);

class CounterRng {
 public:
  CounterRng(std::uint64_t seed, std::uint64_t stream) : seed_(seed), stream_(stream) {}

  std::array<std::uint32_t, 4> block(std::uint64_t counter) const;
  std::uint64_t bits(std::uint64_t counter) const;  // 64 random bits
  double uniform(std::uint64_t counter) const;      // [0, 1), 53 bits
  std::uint64_t below(std::uint64_t counter,
                      std::uint64_t bound) const;  // [0, bound), unbiased to 2^-64
  double normal(std::uint64_t counter) const;      // mean 0, deviation 1

 private:
  std::uint64_t seed_;
  std::uint64_t stream_;
};

}  // namespace farspan
