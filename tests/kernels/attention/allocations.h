// How often this program has called operator new.
#pragma once

#include <cstdint>

namespace farspan::testing {
std::int64_t num_allocations();
}  // namespace farspan::testing
