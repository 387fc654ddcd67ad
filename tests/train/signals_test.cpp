#include "app/signals.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include "core/error.h"

namespace farspan::app {
namespace {

TEST(StopRequest, EachSignalAsksForAStop) {
  for (const auto& [signal, name] :
       {std::pair{SIGUSR1, "SIGUSR1"}, {SIGTERM, "SIGTERM"}, {SIGINT, "SIGINT"}}) {
    const StopRequest stop({});
    EXPECT_FALSE(stop.requested());
    EXPECT_EQ(stop.signal_name(), "");
    ::raise(signal);
    EXPECT_TRUE(stop.requested());
    EXPECT_EQ(stop.signal(), signal);
    EXPECT_EQ(stop.signal_name(), name);
  }
}

TEST(StopRequest, TheFirstSignalIsNamed) {
  const StopRequest stop({});
  ::raise(SIGUSR1);
  ::raise(SIGTERM);
  ::raise(SIGINT);  // the first of its kind: mpirun sends its ranks several signals
  EXPECT_EQ(stop.signal_name(), "SIGUSR1");
}

TEST(StopRequest, AnnouncesOnce) {
  const StopRequest stop({.announce = true});
  ::testing::internal::CaptureStderr();
  ::raise(SIGINT);
  ::raise(SIGUSR1);
  const std::string text = ::testing::internal::GetCapturedStderr();
  EXPECT_NE(text.find("stopping after this step"), std::string::npos) << text;
  EXPECT_EQ(text.find("stopping", text.find("stopping") + 1), std::string::npos) << text;
}

TEST(StopRequest, HandlersAreRestored) {
  struct sigaction before {};
  ::sigaction(SIGTERM, nullptr, &before);
  {
    const StopRequest stop({});
    struct sigaction during {};
    ::sigaction(SIGTERM, nullptr, &during);
    EXPECT_NE(during.sa_handler, before.sa_handler);
  }
  struct sigaction after {};
  ::sigaction(SIGTERM, nullptr, &after);
  EXPECT_EQ(after.sa_handler, before.sa_handler);
}

TEST(StopRequest, OneAtATime) {
  const StopRequest stop({});
  EXPECT_THROW(StopRequest({}), InternalError);
}

using StopRequestDeathTest = ::testing::Test;
TEST(StopRequestDeathTest, SecondInterruptExitsAtOnce) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        const StopRequest stop({.announce = true});
        ::raise(SIGINT);
        ::raise(SIGINT);
        ::_exit(0);
      },
      ::testing::ExitedWithCode(130), "Ctrl-C again");
}

}  // namespace
}  // namespace farspan::app
