// Lengths of packed documents as they come, and as they come at worst: for balanced layouts.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace farspan::testing {

using Lengths = std::vector<std::int64_t>;

struct LengthKind {
  std::string name;
  std::function<Lengths(std::mt19937_64& rng, std::int64_t tokens)> draw;  // sum: tokens
};

// Documents of drawn lengths until there are `tokens`; the last one is cut.
template <typename Draw>
LengthKind drawn(std::string name, Draw draw) {
  return {std::move(name), [draw](std::mt19937_64& rng, std::int64_t tokens) {
            Lengths lengths;
            for (std::int64_t left = tokens; left > 0; left -= lengths.back())
              lengths.push_back(
                  std::clamp<std::int64_t>(static_cast<std::int64_t>(draw(rng)), 1, left));
            return lengths;
          }};
}

inline std::int64_t uniform(std::mt19937_64& rng, std::int64_t low, std::int64_t high) {
  return std::uniform_int_distribution<std::int64_t>(low, high)(rng);
}

// The kinds of the table in the design page.
inline std::vector<LengthKind> usual_lengths() {
  const auto lognormal = [](double median, double sigma) {
    return [=](std::mt19937_64& rng) {
      return std::min(1e12, median * std::exp(sigma * std::normal_distribution<double>()(rng)));
    };
  };
  return {
      drawn("lognormal, median 3k, sigma 1.2", lognormal(3000, 1.2)),
      drawn("lognormal, median 900, sigma 1.9", lognormal(900, 1.9)),
      drawn("Pareto 1.1 from 500",
            [](std::mt19937_64& rng) {
              const double u = std::uniform_real_distribution<double>(1e-9, 1)(rng);
              return 500 * std::pow(u, -1 / 1.1);
            }),
      drawn("uniform 40-400", [](std::mt19937_64& rng) { return uniform(rng, 40, 400); }),
      drawn("5% of 131072, rest 200-3000",
            [](std::mt19937_64& rng) {
              return uniform(rng, 1, 100) <= 5 ? 131072 : uniform(rng, 200, 3000);
            }),
      drawn("one document", [](std::mt19937_64&) { return std::int64_t{1} << 50; }),
  };
}

inline LengthKind equal_parts(std::int64_t parts) {
  return {"equal, S/" + std::to_string(parts), [parts](std::mt19937_64&, std::int64_t tokens) {
            const std::int64_t each = std::max<std::int64_t>(1, tokens / parts);
            Lengths lengths(static_cast<std::size_t>(tokens / each), each);
            if (tokens % each > 0) lengths.push_back(tokens % each);
            return lengths;
          }};
}

inline LengthKind giant_and_tiny(std::int64_t part, std::int64_t longest) {
  return {"giant S/" + std::to_string(part) + ", rest 1-" + std::to_string(longest),
          [=](std::mt19937_64& rng, std::int64_t tokens) {
            Lengths lengths{std::max<std::int64_t>(1, tokens / part)};
            for (std::int64_t left = tokens - lengths[0]; left > 0; left -= lengths.back())
              lengths.push_back(std::min(left, uniform(rng, 1, longest)));
            return lengths;
          }};
}

inline std::vector<LengthKind> hard_lengths() {
  std::vector<LengthKind> kinds;
  for (const std::int64_t parts : {2, 3, 5, 7, 15, 31, 32, 33, 40, 48, 100})
    kinds.push_back(equal_parts(parts));
  kinds.push_back(drawn("equal, 1024", [](std::mt19937_64&) { return 1024; }));
  kinds.push_back(drawn("equal, 1000", [](std::mt19937_64&) { return 1000; }));
  kinds.push_back(drawn("tiny, 1-10", [](std::mt19937_64& rng) { return uniform(rng, 1, 10); }));
  for (const std::int64_t part : {2, 4, 8, 20, 100}) kinds.push_back(giant_and_tiny(part, 300));
  kinds.push_back(giant_and_tiny(2048, 1));
  kinds.push_back(drawn("bimodal, 500 or 30000", [](std::mt19937_64& rng) {
    return uniform(rng, 0, 1) != 0 ? 30000 : 500;
  }));
  kinds.push_back(drawn("bimodal, 10000 or 100000", [](std::mt19937_64& rng) {
    return uniform(rng, 0, 9) == 0 ? 100000 : 10000;
  }));
  return kinds;
}

}  // namespace farspan::testing
