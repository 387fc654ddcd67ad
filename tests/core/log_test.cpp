#include "core/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <sstream>

#include "core/error.h"

namespace farspan {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class LogFile : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = std::filesystem::temp_directory_path() /
            ("farspan_log_" + std::to_string(getpid()) + ".log");
    std::filesystem::remove(path_);
  }
  void TearDown() override { std::filesystem::remove(path_); }
  std::string content() const {
    std::ostringstream out;
    out << std::ifstream(path_).rdbuf();
    return out.str();
  }
  std::filesystem::path path_;
};

TEST_F(LogFile, GetsEveryMessageWithLevelAndPrefixAndIsAppendedTo) {
  {
    Log log({.console = false, .prefix = "rank 3"});
    log.attach_file(path_);
    log.info("step {}", 7);
    log.warn("slow");
  }
  {
    Log log({.console = false});
    log.attach_file(path_);
    log.error("later");
    log.flush();
  }
  EXPECT_THAT(content(), AllOf(HasSubstr("[rank 3] step 7\n"), HasSubstr("[rank 3] warning: slow"),
                               HasSubstr("error: later\n")));
}

TEST_F(LogFile, QuietConcernsTheConsoleOnly) {
  ::testing::internal::CaptureStderr();
  {
    Log log({.quiet = true});
    log.attach_file(path_);
    log.info("a detail");
    log.warn("a warning");
  }
  const std::string console = ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(console, AllOf(HasSubstr("a warning"), Not(HasSubstr("a detail"))));
  EXPECT_THAT(content(), HasSubstr("a detail"));
}

TEST(Log, FileThatCannotBeOpenedIsAUsageErrorNamingIt) {
  Log log({.console = false});
  try {
    log.attach_file("/proc/no/such/folder/run.log");
    FAIL() << "opened a file in /proc/no";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kUsage);
    EXPECT_THAT(e.text().where, HasSubstr("/proc/no/such/folder/run.log"));
  }
}

}  // namespace
}  // namespace farspan
