// Packed sequences for property tests.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

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

}  // namespace farspan::testing
