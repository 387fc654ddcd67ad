#include "data/mixture.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.h"
#include "core/rng.h"

namespace farspan {

Mixture::Mixture(const std::vector<double>& weights, std::uint64_t seed) : seed_(seed) {
  double left = std::accumulate(weights.begin(), weights.end(), 0.0);
  FARSPAN_CHECK(left > 0, "no source of {} has a weight", weights.size());
  std::size_t last_given = weights.size() - 1;
  while (weights[last_given] == 0) --last_given;
  for (std::size_t k = 0; k < weights.size(); ++k) {
    FARSPAN_CHECK(weights[k] >= 0 && std::isfinite(weights[k]), "weight {} of source {}",
                  weights[k], k);
    if (weights[k] == 0) {
      shares_.push_back(0);
      continue;
    }
    // The last source takes what is left; the others neither nothing nor everything.
    const bool last = k == last_given;
    const double share = last ? 1.0 : weights[k] / left;
    shares_.push_back(
        last ? std::uint64_t{1} << 32
             : static_cast<std::uint64_t>(std::clamp(std::round(share * 0x1p32), 1.0, 0x1p32 - 1)));
    left -= weights[k];
  }
}

std::int64_t Mixture::take(std::size_t source, std::int64_t remaining) const {
  if (source + 1 == shares_.size()) return remaining;
  __extension__ using Wide = unsigned __int128;
  const Wide product = static_cast<Wide>(static_cast<std::uint64_t>(remaining)) * shares_[source];
  return static_cast<std::int64_t>((product + (std::uint64_t{1} << 31)) >> 32);
}

int Mixture::unshuffled(std::int64_t n) const {
  std::int64_t before = n, after = n + 1;
  for (std::size_t k = 0;; ++k) {
    const std::int64_t taken_before = take(k, before), taken_after = take(k, after);
    if (taken_after > taken_before) return static_cast<int>(k);
    before -= taken_before;
    after -= taken_after;
  }
}

std::vector<std::int64_t> Mixture::unshuffled_counts(std::int64_t n) const {
  std::vector<std::int64_t> out(shares_.size());
  for (std::size_t k = 0; k < out.size(); ++k) {
    out[k] = take(k, n);
    n -= out[k];
  }
  return out;
}

std::vector<int> Mixture::block(std::int64_t index, std::uint64_t salt) const {
  std::vector<int> out(kBlock);
  for (std::int64_t j = 0; j < kBlock; ++j)
    out[static_cast<std::size_t>(j)] = unshuffled(index * kBlock + j);
  const CounterRng rng(seed_, stream_id("data.mixture", static_cast<std::uint64_t>(index), salt));
  for (std::size_t j = out.size() - 1; j > 0; --j) std::swap(out[j], out[rng.below(j, j + 1)]);
  return out;
}

Mixture::Place Mixture::place(std::int64_t n, std::uint64_t salt) const {
  FARSPAN_CHECK(n >= 0, "sample {}", n);
  if (shares_.size() == 1) return {0, n};
  const std::vector<int> order = block(n / kBlock, salt);
  const int source = order[static_cast<std::size_t>(n % kBlock)];
  const auto before = std::count(order.begin(), order.begin() + n % kBlock, source);
  return {source, unshuffled_counts(n - n % kBlock)[static_cast<std::size_t>(source)] + before};
}

std::vector<std::int64_t> Mixture::counts(std::int64_t n, std::uint64_t salt) const {
  FARSPAN_CHECK(n >= 0, "sample {}", n);
  if (shares_.size() == 1) return {n};
  std::vector<std::int64_t> out = unshuffled_counts(n - n % kBlock);
  if (n % kBlock == 0) return out;
  const std::vector<int> order = block(n / kBlock, salt);
  for (std::int64_t j = 0; j < n % kBlock; ++j)
    ++out[static_cast<std::size_t>(order[static_cast<std::size_t>(j)])];
  return out;
}

}  // namespace farspan
