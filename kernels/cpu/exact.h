// The terms of exact sums, for every operation that has some. Private to kernels/cpu.
#pragma once

#include <cstdint>

namespace farspan::cpu {

// Adds x[0, n) to high[0, n) and low[0, n) as ExactSum (kernels/args.h) says; returns how many
// terms are invalid.
std::int64_t add_exact_terms(const float* x, std::int64_t* high, std::int64_t* low, std::int64_t n);

}  // namespace farspan::cpu
