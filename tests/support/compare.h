// Comparison of two arrays that, when it fails, prints where.
//
//   expect_close(actual, expected, kernel_tolerance(dtype), "dx", {.shape = {T, C}, .seed = 7});
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <span>
#include <string>
#include <vector>

#include "core/shape.h"
#include "support/tolerance.h"

namespace farspan::testing {

struct CompareContext {
  Shape shape{};  // for coordinates; empty: flat indices
  std::uint64_t seed = 0;
  std::string note{};
};

// "(2, 0, 5)" of flat index i.
inline std::string coordinate(const Shape& shape, std::int64_t i) {
  std::string text;
  for (int d = shape.num_dims() - 1; d >= 0; --d) {
    text = fmt::format("{}{}{}", i % shape[d], text.empty() ? "" : ", ", text);
    i /= shape[d];
  }
  return "(" + text + ")";
}

// Both NaN is equal; one NaN is not. Reports the first five misses and the number of all.
inline void expect_close(std::span<const double> actual, std::span<const double> expected,
                         Tolerance tolerance, const std::string& name,
                         const CompareContext& context = {}) {
  ASSERT_EQ(actual.size(), expected.size()) << name;
  int misses = 0;
  std::string report;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    const double limit = tolerance.absolute + tolerance.relative * std::abs(expected[i]);
    const bool both_nan = std::isnan(actual[i]) && std::isnan(expected[i]);
    if (both_nan || actual[i] == expected[i] || std::abs(actual[i] - expected[i]) <= limit)
      continue;
    if (++misses <= 5) {
      const auto flat = static_cast<std::int64_t>(i);
      const bool shaped = context.shape.num_dims() > 0;
      report += fmt::format("\n  {}{}: {} expected {} (off by {}, limit {})", name,
                            shaped ? coordinate(context.shape, flat) : fmt::format("[{}]", i),
                            actual[i], expected[i], actual[i] - expected[i], limit);
    }
  }
  EXPECT_EQ(misses, 0) << report << "\n  of " << actual.size() << " elements, shape "
                       << context.shape.to_string() << ", seed " << context.seed << " "
                       << context.note;
}

}  // namespace farspan::testing
