#include "app/report.h"

#include <fmt/format.h>

#include <cstdio>
#include <new>

#include "comm/agree.h"

namespace farspan::app {
namespace {

void print(std::string_view message) {
  // One write, so that the lines of several processes do not mix.
  const std::string text = fmt::format("farspan: error: {}\n", message);
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
}

}  // namespace

ExitCode report_failure(std::exception_ptr failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const SharedError& error) {
    if (error.report()) print(error.what());
    return error.code();
  } catch (const Error& error) {
    print(error.what());
    return error.code();
  } catch (const std::bad_alloc&) {
    print("out of memory\n  fix:   use fewer tokens per micro-batch, more ranks, or recompute");
    return ExitCode::kExhausted;
  } catch (const std::exception& error) {
    print(fmt::format("{}\n  fix:   this is a bug in Farspan; please report it with this message",
                      error.what()));
    return ExitCode::kInternal;
  } catch (...) {
    print("an exception of unknown type\n  fix:   this is a bug in Farspan; please report it");
    return ExitCode::kInternal;
  }
}

}  // namespace farspan::app
