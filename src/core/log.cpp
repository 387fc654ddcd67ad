#include "core/log.h"

#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include "core/error.h"

namespace farspan {

struct Log::Impl {
  std::shared_ptr<spdlog::logger> logger;
  std::string prefix;
  bool console = false;
  bool quiet = false;
  std::function<void()> before_console;
};

Log::Log(LogOptions options) : impl_(std::make_unique<Impl>()) {
  impl_->logger = std::make_shared<spdlog::logger>("farspan");
  impl_->prefix = options.prefix.empty() ? "" : "[" + options.prefix + "] ";
  impl_->console = options.console;
  impl_->quiet = options.quiet;
  if (options.console) {
    auto sink = std::make_shared<spdlog::sinks::stderr_color_sink_mt>();
    sink->set_pattern("%^%v%$");
    sink->set_level(options.quiet ? spdlog::level::warn : spdlog::level::info);
    impl_->logger->sinks().push_back(std::move(sink));
  }
}

Log::~Log() = default;
Log::Log(Log&&) noexcept = default;
Log& Log::operator=(Log&&) noexcept = default;

void Log::attach_file(const std::filesystem::path& path) {
  try {
    auto sink = std::make_shared<spdlog::sinks::basic_file_sink_mt>(path.string(), false);
    sink->set_pattern("%Y-%m-%d %H:%M:%S.%e %L %v");
    impl_->logger->sinks().push_back(std::move(sink));
    impl_->logger->flush_on(spdlog::level::info);
  } catch (const spdlog::spdlog_ex& e) {
    throw Error(ExitCode::kUsage, {.what = fmt::format("cannot open the log file: {}", e.what()),
                                   .where = path.string(),
                                   .fix = "choose a writable output_dir"});
  }
}

void Log::write(Level level, std::string_view message) {
  const auto l = level == Level::kInfo   ? spdlog::level::info
                 : level == Level::kWarn ? spdlog::level::warn
                                         : spdlog::level::err;
  const char* tag = level == Level::kWarn ? "warning: " : level == Level::kError ? "error: " : "";
  if (impl_->before_console && impl_->console && !(impl_->quiet && level == Level::kInfo))
    impl_->before_console();
  impl_->logger->log(l, "{}{}{}", impl_->prefix, tag, message);
}

void Log::before_console(std::function<void()> clear) { impl_->before_console = std::move(clear); }

void Log::flush() { impl_->logger->flush(); }

}  // namespace farspan
