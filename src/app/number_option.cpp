#include "app/number_option.h"

#include <fmt/format.h>

#include <charconv>
#include <string>

namespace farspan::app {

CLI::Validator whole_number(std::uint64_t least, std::uint64_t most) {
  const auto check = [least, most](const std::string& text) -> std::string {
    std::uint64_t value = 0;
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, value);
    if (error == std::errc() && stop == end && value >= least && value <= most) return {};
    return most >= kMostInt
               ? fmt::format("'{}' is not a whole number of at least {}", text, least)
               : fmt::format("'{}' is not a whole number from {} to {}", text, least, most);
  };
  return {check, ""};
}

}  // namespace farspan::app
