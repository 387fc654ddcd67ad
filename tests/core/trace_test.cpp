#include "core/trace.h"

#include <gtest/gtest.h>

#include <thread>

namespace farspan {
namespace {

TEST(Trace, SumsSectionsByNameUntilTaken) {
  using namespace std::chrono_literals;
  Trace trace;
  {
    const auto outer = trace.section("step");
    for (int i = 0; i < 3; ++i) {
      const auto inner = trace.section("attention");
      std::this_thread::sleep_for(2ms);
    }
  }
  trace.add("attention", 1.0);
  const auto sums = trace.take();
  ASSERT_EQ(sums.size(), 2u);
  EXPECT_EQ(sums.at("attention").calls, 4);
  EXPECT_GE(sums.at("attention").seconds, 1.006);
  EXPECT_LT(sums.at("attention").seconds, 2.0);
  EXPECT_EQ(sums.at("step").calls, 1);
  EXPECT_GE(sums.at("step").seconds, 0.006) << "an outer section contains its inner ones";
  EXPECT_TRUE(trace.sums().empty()) << "taken, so begun anew";
}

}  // namespace
}  // namespace farspan
