#include "train/watchdog.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <optional>
#include <thread>

namespace farspan {
namespace {

using ::testing::HasSubstr;
using Phase = Watchdog::Phase;

void sleep_ms(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

// Records what the watchdog does instead of ending the process.
struct Fake {
  std::mutex mutex;
  std::string printed;
  std::string aborted;
  std::atomic<int> exit_code{-1};

  WatchdogOptions options(WatchdogTimeouts timeouts) {
    return {.rank = 3,
            .timeouts = timeouts,
            .hard_deadline = 5,
            .last_operation = [] { return std::string("all_reduce #1234, 4096 bytes"); },
            .abort =
                [this](std::string_view why) {
                  const std::scoped_lock lock(mutex);
                  aborted = why;
                },
            .print =
                [this](std::string_view text) {
                  const std::scoped_lock lock(mutex);
                  printed += text;
                },
            .exit = [this](int code) { exit_code = code; }};
  }
  std::string text() {
    const std::scoped_lock lock(mutex);
    return printed;
  }
  std::string abort_text() {
    const std::scoped_lock lock(mutex);
    return aborted;
  }
};

template <typename Condition>
bool wait_for(Condition condition) {
  for (int i = 0; i < 1000 && !condition(); ++i) sleep_ms(5);
  return condition();
}

TEST(Watchdog, NamesRankSectionStepAndCollective) {
  Fake fake;
  Watchdog watchdog(fake.options({.step = 0.05}));
  const auto section = watchdog.enter(Phase::kStep, 17);
  ASSERT_TRUE(wait_for([&] { return !fake.abort_text().empty(); }));
  EXPECT_THAT(fake.text(), HasSubstr("rank 3"));
  EXPECT_THAT(fake.text(), HasSubstr("section 'step' of step 17"));
  EXPECT_THAT(fake.text(), HasSubstr("all_reduce #1234, 4096 bytes"));
  EXPECT_THAT(fake.text(), HasSubstr("0.05 s"));
  EXPECT_THAT(fake.abort_text(), HasSubstr("rank 3"));
  EXPECT_EQ(fake.exit_code, -1) << "the hard deadline is 5 s away";
}

TEST(Watchdog, UnwindingInTimeAvoidsTheHardExit) {
  Fake fake;
  {
    Watchdog watchdog(fake.options({.step = 0.02}));
    const auto section = watchdog.enter(Phase::kStep, 1);
    ASSERT_TRUE(wait_for([&] { return !fake.abort_text().empty(); }));
  }
  EXPECT_EQ(fake.exit_code, -1);
}

TEST(Watchdog, HardDeadlineEndsAnAbortThatHangs) {
  Fake fake;
  WatchdogOptions options = fake.options({.save = 0.02});
  options.hard_deadline = 0.05;
  std::atomic<bool> release{false};
  options.abort = [&](std::string_view) {
    while (!release) sleep_ms(1);
  };
  {
    Watchdog watchdog(options);
    const auto section = watchdog.enter(Phase::kSave, 1);
    EXPECT_TRUE(wait_for([&] { return fake.exit_code == 6; })) << fake.exit_code;
    release = true;
  }
}

TEST(Watchdog, SectionsInTimeAreLeftAlone) {
  Fake fake;
  {
    Watchdog watchdog(fake.options({.data = 0.4, .step = 0.4}));
    for (int step = 0; step < 30; ++step) {  // 0.6 s in all: each section starts anew
      {
        const auto section = watchdog.enter(Phase::kData, step);
        sleep_ms(10);
      }
      const auto section = watchdog.enter(Phase::kStep, step);
      sleep_ms(10);
    }
  }
  EXPECT_EQ(fake.text(), "");
}

TEST(Watchdog, NothingIsWatchedOutsideSectionsOrWithoutALimit) {
  Fake fake;
  {
    Watchdog watchdog(fake.options({.step = 0.02, .eval = 0}));
    sleep_ms(80);
    const auto section = watchdog.enter(Phase::kEval, 1);
    sleep_ms(80);
  }
  EXPECT_EQ(fake.text(), "");
}

TEST(Watchdog, AnInnerSectionStopsTheOuterClock) {
  Fake fake;
  Watchdog watchdog(fake.options({.step = 0.3, .save = 10}));
  const auto outer = watchdog.enter(Phase::kStep, 8);
  {
    const auto inner = watchdog.enter(Phase::kSave, 8);
    sleep_ms(450);
  }
  sleep_ms(120);  // the watchdog looks every 75 ms
  EXPECT_EQ(fake.text(), "");
  EXPECT_TRUE(wait_for([&] { return !fake.text().empty(); })) << "the outer section goes on";
  EXPECT_THAT(fake.text(), HasSubstr("section 'step' of step 8"));
}

// In a process of its own: the true _exit, and the true standard error.
using WatchdogDeathTest = ::testing::Test;
TEST(WatchdogDeathTest, ExitsWithSix) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        Watchdog watchdog({.rank = 1,
                           .timeouts = {.eval = 0.05},
                           .hard_deadline = 0.1,
                           .abort = [](std::string_view) { sleep_ms(60000); }});
        const auto section = watchdog.enter(Phase::kEval, 9);
        sleep_ms(60000);
      },
      ::testing::ExitedWithCode(6), "rank 1 has made no progress.*section 'eval' of step 9");
}

// A stopped process must not raise the alarm itself when it continues: its peers do.
TEST(WatchdogDeathTest, TimeStoppedDoesNotCount) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    Watchdog watchdog({.timeouts = {.step = 1.5}, .hard_deadline = 0.01});
    const auto section = watchdog.enter(Phase::kStep, 1);
    sleep_ms(200);
    ::raise(SIGSTOP);
    sleep_ms(300);
    ::_exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, WUNTRACED), child);
  ASSERT_TRUE(WIFSTOPPED(status));
  sleep_ms(2700);
  ::kill(child, SIGCONT);
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
}  // namespace farspan
