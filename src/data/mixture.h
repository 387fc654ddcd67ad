// Which source a sample comes from: shares kept to within a sample or two at every point of a run,
// as a pure function of the sample's number.
//
//   Mixture m({0.7, 0.3}, seed);
//   Mixture::Place p = m.place(n, salt);     // {.source = 1, .ordinal = 4}: its fifth sample so
//   far m.counts(n, salt);                       // samples of each source among the first n
//
// Sources are split off one after the other: of N samples the first takes floor(N p + 1/2), the
// next its part of the remainder, and so on, in exact fixed-point arithmetic. Each count grows by 0
// or 1 per sample, so the assignment is well defined and costs O(sources). Inside blocks of 64
// samples the order is shuffled, so that no source falls into step with ranks or micro-batches.
#pragma once

#include <cstdint>
#include <vector>

namespace farspan {

class Mixture {
 public:
  struct Place {
    int source = 0;
    std::int64_t ordinal = 0;  // samples of this source before this one
  };

  // Weights >= 0, one of them > 0: a source of weight 0 gives no sample.
  Mixture(const std::vector<double>& weights, std::uint64_t seed);

  // Sample n >= 0, counted from the stage's start; `salt` varies the shuffle between stages.
  Place place(std::int64_t n, std::uint64_t salt) const;
  std::vector<std::int64_t> counts(std::int64_t n, std::uint64_t salt) const;

 private:
  static constexpr std::int64_t kBlock = 64;

  std::int64_t take(std::size_t source, std::int64_t remaining) const;
  int unshuffled(std::int64_t n) const;
  std::vector<std::int64_t> unshuffled_counts(std::int64_t n) const;
  std::vector<int> block(std::int64_t index, std::uint64_t salt) const;

  std::vector<std::uint64_t> shares_;  // of what is left, in units of 2^-32
  std::uint64_t seed_;
};

}  // namespace farspan
