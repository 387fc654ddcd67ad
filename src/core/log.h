// Messages for people, passed by reference: there is no global logger.
//
//   Log log({.console = rank == 0, .prefix = "rank 0"});
//   log.attach_file(dir / "run.log");
//   log.info("resuming from {}", path);
#pragma once

#include <fmt/format.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

namespace farspan {

struct LogOptions {
  bool console = true;   // write to standard error
  bool quiet = false;    // console shows warnings and errors only
  std::string prefix{};  // "rank 3", put before each message when not empty
};

class Log {
 public:
  explicit Log(LogOptions options = {});
  ~Log();
  Log(Log&&) noexcept;
  Log& operator=(Log&&) noexcept;

  // From now on every message also goes to this file (appended). Throws Error(kUsage) when it
  // cannot be opened.
  void attach_file(const std::filesystem::path& path);

  template <typename... Args>
  void info(fmt::format_string<Args...> format, Args&&... args) {
    write(Level::kInfo, fmt::format(format, std::forward<Args>(args)...));
  }
  template <typename... Args>
  void warn(fmt::format_string<Args...> format, Args&&... args) {
    write(Level::kWarn, fmt::format(format, std::forward<Args>(args)...));
  }
  template <typename... Args>
  void error(fmt::format_string<Args...> format, Args&&... args) {
    write(Level::kError, fmt::format(format, std::forward<Args>(args)...));
  }
  void flush();
  // Called before each message that the console shows: whoever owns a line there (a progress bar)
  // clears it. An empty function ends that. The caller sees to it that no other thread logs
  // meanwhile.
  void before_console(std::function<void()> clear);

 private:
  enum class Level { kInfo, kWarn, kError };
  void write(Level level, std::string_view message);

  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace farspan
