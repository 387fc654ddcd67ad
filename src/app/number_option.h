// Whole numbers of the command line. CLI11 alone takes -1 for an unsigned number, as 2^64 - 1.
//
//   cmd.add_option("--seed", seed, "of the draws")->check(whole_number());
//   cmd.add_option("--threads", threads, "...")->check(whole_number(1, kMostInt));
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <limits>

namespace farspan::app {

inline constexpr std::uint64_t kMostInt = std::numeric_limits<int>::max();

// Digits only, from `least` to `most`; the error says so.
CLI::Validator whole_number(std::uint64_t least = 0,
                            std::uint64_t most = std::numeric_limits<std::uint64_t>::max());

}  // namespace farspan::app
