#include "train/longest.h"

#include <algorithm>

#include "core/error.h"

namespace farspan {

std::int64_t longest_fit(std::int64_t unit, std::int64_t limit,
                         const std::function<bool(std::int64_t length)>& fits) {
  constexpr std::int64_t kResolution = 256;
  FARSPAN_CHECK(unit > 0, "lengths are multiples of {}", unit);
  const std::int64_t most = limit / unit;
  std::int64_t good = 0, bad = most + 1;  // in units
  for (std::int64_t n = 1; n <= most; n = std::min(2 * n, most)) {
    if (!fits(n * unit)) {
      bad = n;
      break;
    }
    good = n;
    if (n == most) break;
  }
  while (bad - good > std::max<std::int64_t>(1, good / kResolution)) {
    const std::int64_t middle = good + (bad - good) / 2;
    (fits(middle * unit) ? good : bad) = middle;
  }
  return good * unit;
}

}  // namespace farspan
