// The two kinds of failure and how each is reported.
//
//   User or environment (bad file, bad key, full disk, lost peer): throw Error with what went
//   wrong, where, and what to do about it. `farspan` prints it once and exits with its code. Our
//   own bug: FARSPAN_CHECK, which throws InternalError carrying the source line (exit code 1).
//
//   throw Error(ExitCode::kBadData, {.what = "token id 70000 is outside the vocabulary of 260",
//                                    .where = "data/kjv.train.h5, token 12345",
//                                    .fix = "re-import the text with the tokenizer of this
//                                    model"});
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace farspan {

// Exit codes of the `farspan` program (docs/interface.md).
enum class ExitCode : int {
  kOk = 0,
  kInternal = 1,       // a bug of ours
  kUsage = 2,          // usage or configuration
  kBadData = 3,        // bad input data or checkpoint
  kExhausted = 4,      // memory or disk exhausted
  kNumeric = 5,        // skip budget spent
  kCommunication = 6,  // communication failure or watchdog
  kDoesNotFit = 7,     // the plan does not fit
  kExtrapolates = 8,   // the plan extrapolates too far
  kResumable = 75,     // stopped on request; start again to resume
};

struct ErrorText {
  std::string what;
  std::string where{};
  std::string fix{};
};

class Error : public std::runtime_error {
 public:
  Error(ExitCode code, ErrorText text);
  ExitCode code() const { return code_; }
  const ErrorText& text() const { return text_; }

 private:
  ExitCode code_;
  ErrorText text_;
};

// A violated invariant of Farspan itself.
class InternalError : public Error {
 public:
  InternalError(std::string_view file, int line, std::string_view condition, std::string message);
};

namespace detail {
[[noreturn]] void check_failed(const char* file, int line, const char* condition,
                               std::string message);
inline std::string check_message() { return {}; }
template <typename... Args>
std::string check_message(fmt::format_string<Args...> format, Args&&... args) {
  return fmt::format(format, std::forward<Args>(args)...);
}
}  // namespace detail
}  // namespace farspan

// FARSPAN_CHECK(a == b, "rank {}: {} against {}", rank, a, b): active in every build type.
#define FARSPAN_CHECK(condition, ...)                                                 \
  do {                                                                                \
    if (!(condition)) [[unlikely]]                                                    \
      ::farspan::detail::check_failed(__FILE__, __LINE__, #condition,                 \
                                      ::farspan::detail::check_message(__VA_ARGS__)); \
  } while (false)
