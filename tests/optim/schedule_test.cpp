#include "optim/schedule.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/error.h"

namespace farspan {
namespace {

LearningRateSchedule make(const char* type, double warmup, double min_ratio, std::int64_t total,
                          double decay = 0.1, double peak = 1e-3) {
  config::Schedule s;
  s.set_type(type);
  s.set_warmup(warmup);
  s.set_min_lr_ratio(min_ratio);
  s.set_decay(decay);
  return LearningRateSchedule::from(s, peak, total);
}

// Golden values worked out by hand from the formulas of the header.
TEST(Schedule, CosineGolden) {
  const auto s = make("cosine", 20, 0.1, 100);
  EXPECT_DOUBLE_EQ(s.at(0), 1e-3 / 20);
  EXPECT_DOUBLE_EQ(s.at(9), 0.5e-3);
  EXPECT_DOUBLE_EQ(s.at(19), 1e-3);
  EXPECT_DOUBLE_EQ(s.at(20), 1e-3);
  EXPECT_NEAR(s.at(40), 1e-3 * (0.1 + 0.9 * 0.8535533905932737), 1e-15);  // p = 1/4
  EXPECT_NEAR(s.at(60), 1e-3 * 0.55, 1e-15);                              // p = 1/2
  EXPECT_NEAR(s.at(80), 1e-3 * (0.1 + 0.9 * 0.1464466094067262), 1e-15);  // p = 3/4
  EXPECT_GT(s.at(99), 1e-4);
  EXPECT_LT(s.at(99), 1.01e-3 * 0.11);
  EXPECT_DOUBLE_EQ(s.at(100), 1e-4);
  EXPECT_DOUBLE_EQ(s.at(1000), 1e-4);
}

TEST(Schedule, LinearGolden) {
  const auto s = make("linear", 0, 0.0, 4);
  EXPECT_DOUBLE_EQ(s.at(0), 1e-3);
  EXPECT_DOUBLE_EQ(s.at(1), 0.75e-3);
  EXPECT_DOUBLE_EQ(s.at(2), 0.5e-3);
  EXPECT_DOUBLE_EQ(s.at(3), 0.25e-3);  // the last step still learns
  EXPECT_DOUBLE_EQ(s.at(4), 0.0);
}

TEST(Schedule, WsdGolden) {
  const auto s = make("wsd", 10, 0.2, 100, 20);
  EXPECT_DOUBLE_EQ(s.at(0), 1e-4);
  EXPECT_DOUBLE_EQ(s.at(9), 1e-3);
  EXPECT_DOUBLE_EQ(s.at(79), 1e-3);
  EXPECT_DOUBLE_EQ(s.at(80), 1e-3);
  EXPECT_NEAR(s.at(90), 0.6e-3, 1e-15);
  EXPECT_NEAR(s.at(95), 0.4e-3, 1e-15);
  EXPECT_NEAR(s.at(100), 0.2e-3, 1e-15);
  EXPECT_EQ(s.decay_begin(), 80);
}

TEST(Schedule, ConstantKeepsThePeakForEver) {
  const auto s = make("constant", 2, 0.1, 10);
  EXPECT_DOUBLE_EQ(s.at(0), 0.5e-3);
  for (std::int64_t step : {1, 2, 5, 9, 10, 100}) EXPECT_DOUBLE_EQ(s.at(step), 1e-3) << step;
}

TEST(Schedule, SharesAreOfTheTotal) {
  const auto s = make("wsd", 0.02, 0.0, 1000, 0.1);
  EXPECT_EQ(s.warmup_steps(), 20);
  EXPECT_EQ(s.decay_begin(), 900);
  EXPECT_EQ(make("cosine", 0.0, 0.1, 1000).warmup_steps(), 0);
  EXPECT_EQ(make("cosine", 1.0, 0.1, 1000).warmup_steps(), 1) << "1 is one step, not 100%";
}

TEST(Schedule, EveryRateIsPositiveAndAtMostThePeak) {
  for (const char* type : {"cosine", "wsd", "linear", "constant"})
    for (double warmup : {0.0, 1.0, 0.5, 7.0, 200.0})
      for (double decay : {0.1, 1.0, 50.0})
        for (std::int64_t total : {1, 2, 7, 50}) {
          const auto s = make(type, warmup, 0.0, total, decay);
          for (std::int64_t step = 0; step < total; ++step) {
            ASSERT_GT(s.at(step), 0.0) << type << " warmup " << warmup << " decay " << decay
                                       << " total " << total << " step " << step;
            ASSERT_LE(s.at(step), 1e-3);
            ASSERT_FALSE(std::isnan(s.at(step)));
          }
        }
}

TEST(Schedule, DecayDoesNotReachIntoTheWarmup) {
  const auto s = make("wsd", 60, 0.0, 100, 80);
  EXPECT_EQ(s.decay_begin(), 60);
  EXPECT_DOUBLE_EQ(s.at(59), 1e-3);
  EXPECT_DOUBLE_EQ(s.at(80), 0.5e-3);
}

// A resume with more steps: the part before the old decay is unchanged for steps of warmup.
TEST(Schedule, RaisedTotalContinues) {
  const auto before = make("wsd", 10, 0.1, 100, 10);
  const auto after = make("wsd", 10, 0.1, 200, 10);
  for (std::int64_t step = 0; step < 90; ++step) EXPECT_EQ(before.at(step), after.at(step)) << step;
  EXPECT_LT(before.at(95), after.at(95));
  EXPECT_DOUBLE_EQ(after.at(150), 1e-3);
}

TEST(Schedule, UnknownTypeIsABug) {
  config::Schedule s;
  s.set_type("exponential");
  EXPECT_THROW(LearningRateSchedule::from(s, 1e-3, 10), InternalError);
}

TEST(Schedule, Description) {
  EXPECT_EQ(make("cosine", 20, 0.1, 100).description(),
            "cosine: 20 steps of warmup to 0.001, then down to 0.0001 at step 100");
  EXPECT_EQ(make("wsd", 0, 0.0, 100, 10).description(),
            "wsd: 0.001 from the first step, constant until step 90, then down to 0 at step 100");
  EXPECT_EQ(make("constant", 5, 0.1, 100).description(), "constant: 5 steps of warmup to 0.001");
}

}  // namespace
}  // namespace farspan
