// The text of a number, as the configuration reads it.
//
//   read_integer("4k", config::LENGTH)   -> 4096           k, M, G binary
//   read_integer("2B", config::BUDGET)   -> 2000000000     k, M, B, T decimal
//   read_integer("141GB", config::MEMORY)-> 141000000000   kB MB GB TB decimal, KiB MiB GiB TiB
//   read_number("2%", config::STEPS_OR_SHARE) -> 0.02
//
// Nothing is guessed: `010` (8 for some YAML readers, 10 for others), `0x10`, `1_000`, `1,5` and
// text are refused with what to write instead. Integers are exact: 1.5k is 1536, 1e6 is 1000000,
// 1.0001k is refused.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "config/run_config.pb.h"

namespace farspan {

__extension__ using Int128 = __int128;

template <typename T>
struct Reading {
  bool ok = false;
  T value{};
  std::string what{};  // when not ok: "is not a whole number"
  std::string fix{};
};

// Any integer with at most 20 digits before its suffix; the caller checks the range.
Reading<Int128> read_integer(std::string_view text, config::Quantity quantity);

// A finite number. STEPS_OR_SHARE: 0, whole steps (>= 1), or a share: 2% or 0.02, below 100%.
Reading<double> read_number(std::string_view text, config::Quantity quantity);

// A range such as "[0,1]" or "(0,inf)".
struct Range {
  double low = 0, high = 0;
  bool low_open = false, high_open = false;
  bool contains(double value) const;
  bool contains(Int128 value) const;
  std::string text() const;  // "at least 1", "between 0 and 1", "above 0"
};
Range parse_range(std::string_view text);

}  // namespace farspan
