// The longest sequences that fit: dry runs of ever longer ones.
//
//   const auto longest = longest_fit(256, 1 << 30, [&](std::int64_t length) { return fits(length);
//   });
#pragma once

#include <cstdint>
#include <functional>

namespace farspan {

// The largest multiple of `unit` up to `limit` that fits, 0 where not even `unit` does. What is
// shorter than a length that fits is taken to fit too. Doubles until something does not fit, then
// bisects down to `unit`, or to a 256th of the length where that is more.
std::int64_t longest_fit(std::int64_t unit, std::int64_t limit,
                         const std::function<bool(std::int64_t length)>& fits);

}  // namespace farspan
