// Packed sequences for property tests.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "parallel/sequence_layout.h"

namespace farspan::testing {

// `length` tokens of documents whose lengths are uniform in [1, longest]; segments ascend.
inline std::vector<std::int32_t> random_segments(std::mt19937_64& rng, std::int64_t length,
                                                 std::int64_t longest) {
  std::vector<std::int32_t> segments;
  std::uniform_int_distribution<std::int64_t> draw(1, std::max<std::int64_t>(longest, 1));
  for (std::int32_t s = 0; static_cast<std::int64_t>(segments.size()) < length; ++s) {
    const std::int64_t room = length - static_cast<std::int64_t>(segments.size());
    segments.insert(segments.end(), static_cast<std::size_t>(std::min(draw(rng), room)), s);
  }
  return segments;
}

// `length` tokens in runs of 1 to 9 (or, with `stride` > 1, runs of one residue each), each given
// to any of the ranks, in any order there.
inline std::vector<std::vector<IndexRange>> random_ranges(std::mt19937_64& rng, std::int64_t length,
                                                          int ranks, std::int64_t stride = 1) {
  std::vector<std::vector<IndexRange>> ranges(static_cast<std::size_t>(ranks));
  for (std::int64_t c = 0; c < std::min(stride, length); ++c)
    for (std::int64_t next = c; next < length;) {
      const auto size = static_cast<std::int64_t>(1 + rng() % 9);
      ranges[rng() % static_cast<std::uint64_t>(ranks)].push_back(
          {next, std::min(length, next + (size - 1) * stride + 1), stride});
      next += size * stride;
    }
  for (auto& of_rank : ranges) std::shuffle(of_rank.begin(), of_rank.end(), rng);
  return ranges;
}

// Positions of packed documents: they count from 0 in each, with jumps ahead of up to `jump` at
// random places (as PoSE makes them) and, with `resets`, places where they start again.
inline std::vector<std::int32_t> random_positions(std::mt19937_64& rng,
                                                  const std::vector<std::int32_t>& segments,
                                                  std::int32_t jump, bool resets) {
  std::vector<std::int32_t> positions(segments.size());
  for (std::size_t i = 1; i < segments.size(); ++i) {
    positions[i] = segments[i] == segments[i - 1] ? positions[i - 1] + 1 : 0;
    if (rng() % 11 == 0) positions[i] += static_cast<std::int32_t>(rng() % 3) * jump;
    if (resets && rng() % 17 == 0) positions[i] = 0;
  }
  return positions;
}

}  // namespace farspan::testing
