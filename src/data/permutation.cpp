#include "data/permutation.h"

#include <algorithm>
#include <bit>

#include "core/error.h"
#include "core/rng.h"

namespace farspan {
namespace {

// The finaliser of MurmurHash3 over the keyed half: any good mixing serves as round function.
std::uint64_t mix(std::uint64_t x) {
  x ^= x >> 33;
  x *= 0xff51afd7ed558ccdu;
  x ^= x >> 33;
  x *= 0xc4ceb9fe1a85ec53u;
  return x ^ (x >> 33);
}

}  // namespace

Permutation::Permutation(std::uint64_t n, std::uint64_t seed, std::uint64_t stream) : n_(n) {
  FARSPAN_CHECK(n >= 1);
  half_bits_ = std::max(3, (static_cast<int>(std::bit_width(n - 1)) + 1) / 2);
  const CounterRng rng(seed, stream);
  for (std::size_t i = 0; i < keys_.size(); ++i) keys_[i] = rng.bits(i);
}

std::uint64_t Permutation::operator()(std::uint64_t k) const {
  FARSPAN_CHECK(k < n_, "element {} of {}", k, n_);
  const std::uint64_t mask = (std::uint64_t{1} << half_bits_) - 1;
  do {
    std::uint64_t left = k >> half_bits_, right = k & mask;
    for (std::uint64_t key : keys_) {
      const std::uint64_t next = left ^ (mix(right ^ key) & mask);
      left = right;
      right = next;
    }
    k = (left << half_bits_) | right;
  } while (k >= n_);
  return k;
}

}  // namespace farspan
