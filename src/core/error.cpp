#include "core/error.h"

namespace farspan {
namespace {

std::string join(const ErrorText& text) {
  std::string out = text.what;
  if (!text.where.empty()) out += "\n  where: " + text.where;
  if (!text.fix.empty()) out += "\n  fix:   " + text.fix;
  return out;
}

}  // namespace

Error::Error(ExitCode code, ErrorText text)
    : std::runtime_error(join(text)), code_(code), text_(std::move(text)) {}

InternalError::InternalError(std::string_view file, int line, std::string_view condition,
                             std::string message)
    : Error(ExitCode::kInternal,
            {.what = fmt::format("internal check failed: {}{}{}", condition,
                                 message.empty() ? "" : ": ", message),
             .where = fmt::format("{}:{}", file, line),
             .fix = "this is a bug in Farspan; please report it with this message"}) {}

namespace detail {
void check_failed(const char* file, int line, const char* condition, std::string message) {
  throw InternalError(file, line, condition, std::move(message));
}
}  // namespace detail
}  // namespace farspan
