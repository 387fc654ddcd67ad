#include "config/quantity.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "config/schema.h"
#include "core/error.h"

namespace farspan {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

std::string_view trim(std::string_view text) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  return text;
}

// The multiplier of a suffix; 0 for an unknown one.
Int128 multiplier(std::string_view suffix, config::Quantity quantity) {
  if (suffix.empty()) return 1;
  struct Row {
    config::Quantity quantity;
    std::string_view suffix;
    std::int64_t factor;
  };
  static constexpr std::int64_t kKi = 1024;
  static constexpr std::int64_t kT = 1'000'000'000'000;
  static constexpr Row kRows[] = {
      {config::LENGTH, "k", kKi},
      {config::LENGTH, "K", kKi},
      {config::LENGTH, "M", kKi * kKi},
      {config::LENGTH, "G", kKi * kKi * kKi},
      {config::BUDGET, "k", 1000},
      {config::BUDGET, "K", 1000},
      {config::BUDGET, "M", 1'000'000},
      {config::BUDGET, "B", 1'000'000'000},
      {config::BUDGET, "T", kT},
      {config::MEMORY, "kB", 1000},
      {config::MEMORY, "KB", 1000},
      {config::MEMORY, "MB", 1'000'000},
      {config::MEMORY, "GB", 1'000'000'000},
      {config::MEMORY, "TB", kT},
      {config::MEMORY, "KiB", kKi},
      {config::MEMORY, "MiB", kKi * kKi},
      {config::MEMORY, "GiB", kKi * kKi * kKi},
      {config::MEMORY, "TiB", kKi * kKi * kKi * kKi},
  };
  for (const Row& row : kRows)
    if (row.quantity == quantity && row.suffix == suffix) return row.factor;
  return 0;
}

std::string how_to_write(config::Quantity quantity) {
  switch (quantity) {
    case config::LENGTH:
      return "write tokens such as 4096 or 4k (k = 1024, M = 1048576)";
    case config::BUDGET:
      return "write tokens such as 2000000000 or 2B (k, M, B, T are decimal here)";
    case config::MEMORY:
      return "write bytes with a unit, such as 141GB or 80GiB";
    case config::STEPS_OR_SHARE:
      return "write steps such as 20, or a share of all steps such as 2%";
    default:
      return "write a plain number";
  }
}

// Notations that readers of YAML disagree on.
template <typename T>
bool refuse_ambiguous(std::string_view digits, Reading<T>& out) {
  std::string_view body = digits;
  if (!body.empty() && (body.front() == '-' || body.front() == '+')) body.remove_prefix(1);
  if (body.size() > 1 && body[0] == '0' && std::string_view("xXoObB").find(body[1]) != body.npos) {
    out.what = "is not decimal";
    out.fix = "write the number in decimal";
    return true;
  }
  const bool octal_looking =
      body.size() > 1 && body[0] == '0' &&
      std::all_of(body.begin(), body.end(), [](char c) { return is_digit(c) || c == '_'; });
  if (octal_looking) {
    std::string decimal(body.substr(std::min(body.find_first_not_of("0_"), body.size() - 1)));
    out.what = "looks octal: some programs read it as base 8, others as base 10";
    out.fix = fmt::format("write {} without the leading zero", decimal);
    return true;
  }
  if (body.find_first_of("_,' ") != body.npos && !body.empty() && is_digit(body[0])) {
    std::string plain(body);
    std::erase_if(plain, [](char c) { return c == '_' || c == ',' || c == '\'' || c == ' '; });
    if (std::all_of(plain.begin(), plain.end(), is_digit)) {
      out.what = "has separators between its digits";
      out.fix = "write the digits without separators, and a point before decimals";
      return true;
    }
  }
  return false;
}

struct Decimal {
  bool ok = false;
  bool negative = false;
  Int128 mantissa = 0;
  int exponent = 0;  // of ten
  bool too_large = false;
  std::size_t length = 0;  // characters used
};

// [+-] digits [. digits] [e [+-] digits], greedy.
Decimal scan_decimal(std::string_view text) {
  constexpr int kMaxDigits = 20, kMaxExponent = 400;  // any uint64; 10^20 * 2^40 fits
  Decimal out;
  std::size_t i = 0;
  int digits = 0, significant = 0;
  if (i < text.size() && (text[i] == '-' || text[i] == '+')) out.negative = text[i++] == '-';
  bool fraction = false;
  for (; i < text.size(); ++i) {
    if (text[i] == '.' && !fraction) {
      fraction = true;
      continue;
    }
    if (!is_digit(text[i])) break;
    ++digits;
    if (significant > 0 || text[i] != '0') ++significant;
    if (significant > kMaxDigits) {
      // Further zeros after the point carry nothing; anything else is beyond what is exact here.
      if (!(fraction && text[i] == '0')) out.too_large = true;
      continue;
    }
    out.mantissa = out.mantissa * 10 + (text[i] - '0');
    if (fraction) --out.exponent;
  }
  if (digits == 0) return out;
  if (i + 1 < text.size() && (text[i] == 'e' || text[i] == 'E')) {
    std::size_t j = i + 1;
    const bool minus = text[j] == '-';
    if (text[j] == '-' || text[j] == '+') ++j;
    if (j < text.size() && is_digit(text[j])) {
      int e = 0;
      for (; j < text.size() && is_digit(text[j]); ++j)
        e = std::min(e * 10 + (text[j] - '0'), kMaxExponent);
      out.exponent += minus ? -e : e;
      i = j;
    }
  }
  out.ok = true;
  out.length = i;
  return out;
}

// mantissa * factor * 10^exponent where it is whole; what is wrong otherwise.
Reading<Int128> scale(const Decimal& d, Int128 factor) {
  constexpr Int128 kLimit = Int128{1} << 80;  // far beyond every key's range, far below overflow
  Reading<Int128> out;
  Int128 value = d.mantissa * factor;
  for (int e = d.exponent; e > 0 && value != 0; --e) {
    value *= 10;
    if (value > kLimit) break;
  }
  for (int e = d.exponent; e < 0 && value != 0; ++e) {
    if (value % 10 != 0) {
      out.what = "is not a whole number";
      return out;
    }
    value /= 10;
  }
  if (value > kLimit || d.too_large) {
    out.what = "is too large";
    return out;
  }
  out.ok = true;
  out.value = d.negative ? -value : value;
  return out;
}

}  // namespace

Reading<Int128> read_integer(std::string_view raw, config::Quantity quantity) {
  const std::string_view text = trim(raw);
  Reading<Int128> out;
  if (refuse_ambiguous(text, out)) return out;
  const Decimal decimal = scan_decimal(text);
  if (!decimal.ok) {
    out.what = "is not a whole number";
    out.fix = how_to_write(quantity);
    return out;
  }
  const std::string_view suffix = trim(text.substr(decimal.length));
  const Int128 factor = multiplier(suffix, quantity);
  if (factor == 0) {
    const bool needs_plain = quantity == config::PLAIN;
    out.what = needs_plain ? fmt::format("is not a plain whole number")
                           : fmt::format("has the unknown suffix '{}'", suffix);
    out.fix = how_to_write(quantity);
    return out;
  }
  out = scale(decimal, factor);
  if (!out.ok && out.fix.empty()) out.fix = how_to_write(quantity);
  return out;
}

Reading<double> read_number(std::string_view raw, config::Quantity quantity) {
  std::string_view text = trim(raw);
  Reading<double> out;
  if (refuse_ambiguous(text, out)) return out;
  const bool share = quantity == config::STEPS_OR_SHARE;
  const bool percent = share && !text.empty() && text.back() == '%';
  if (percent) text = trim(text.substr(0, text.size() - 1));
  if (!text.empty() && text.front() == '+') text.remove_prefix(1);
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, out.value);
  const bool starts_numeric =
      !text.empty() && (is_digit(text[0]) || text[0] == '-' || text[0] == '.');
  if (error == std::errc::result_out_of_range && stop == end) {
    out.what = "is too large or too small for a double";
  } else if (!starts_numeric || error != std::errc{} || stop != end) {
    out.what = "is not a number";
    out.fix = how_to_write(quantity);
  } else if (!std::isfinite(out.value)) {
    out.what = "is not finite";
  } else {
    out.ok = true;
  }
  if (!out.ok || !share) return out;

  if (percent) out.value /= 100;
  if (percent ? out.value >= 1 : out.value >= 1 && out.value != std::floor(out.value)) {
    out.ok = false;
    out.what = percent ? "is not below 100%" : "is neither a whole number of steps nor a share";
    out.fix = how_to_write(quantity);
  } else if (out.value < 0) {
    out.ok = false;
    out.what = "is negative";
    out.fix = how_to_write(quantity);
  } else if (out.value > 1e12) {
    out.ok = false;
    out.what = "is too large";
  }
  return out;
}

bool Range::contains(double value) const {
  return (low_open ? value > low : value >= low) && (high_open ? value < high : value <= high);
}

bool Range::contains(Int128 value) const { return contains(static_cast<double>(value)); }

std::string Range::text() const {
  const bool bounded = std::isfinite(high);
  if (!bounded) return fmt::format("{} {}", low_open ? "above" : "at least", number_text(low));
  if (low_open || high_open)
    return fmt::format("{} {} and {} {}", low_open ? "above" : "at least", number_text(low),
                       high_open ? "below" : "at most", number_text(high));
  return fmt::format("between {} and {}", number_text(low), number_text(high));
}

Range parse_range(std::string_view text) {
  const std::size_t comma = text.find(',');
  FARSPAN_CHECK(text.size() >= 5 && comma != text.npos, "range '{}'", text);
  Range out;
  out.low_open = text.front() == '(';
  out.high_open = text.back() == ')';
  const auto bound = [&](std::string_view word) {
    if (word == "inf") return std::numeric_limits<double>::infinity();
    double value = 0;
    const auto result = std::from_chars(word.data(), word.data() + word.size(), value);
    FARSPAN_CHECK(result.ec == std::errc{}, "range '{}'", text);
    return value;
  };
  out.low = bound(text.substr(1, comma - 1));
  out.high = bound(text.substr(comma + 1, text.size() - comma - 2));
  return out;
}

}  // namespace farspan
