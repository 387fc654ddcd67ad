#include "core/error.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace farspan {
namespace {

using ::testing::HasSubstr;

TEST(Error, SaysWhatWhereAndWhatToDo) {
  const Error e(ExitCode::kBadData, {.what = "token 70000", .where = "a.h5", .fix = "re-import"});
  EXPECT_EQ(e.code(), ExitCode::kBadData);
  EXPECT_STREQ(e.what(), "token 70000\n  where: a.h5\n  fix:   re-import");
  EXPECT_STREQ(Error(ExitCode::kUsage, {.what = "only this"}).what(), "only this");
}

TEST(Check, PassesSilentlyAndEvaluatesOnce) {
  int evaluated = 0;
  FARSPAN_CHECK(++evaluated == 1);
  EXPECT_EQ(evaluated, 1);
}

TEST(Check, FailureCarriesConditionValuesAndSourceLine) {
  const int rank = 3;
  try {
    FARSPAN_CHECK(rank == 4, "rank {} of {}", rank, 8);
    FAIL() << "the check passed";
  } catch (const InternalError& e) {
    EXPECT_EQ(e.code(), ExitCode::kInternal);
    EXPECT_THAT(e.what(), HasSubstr("rank == 4"));
    EXPECT_THAT(e.what(), HasSubstr("rank 3 of 8"));
    EXPECT_THAT(e.text().where, HasSubstr("error_test.cpp:"));
  }
}

// Exit codes are a contract with scripts (docs: interface): a renumbering must not go unseen.
TEST(ExitCode, NumbersAreFixed) {
  EXPECT_EQ(static_cast<int>(ExitCode::kOk), 0);
  EXPECT_EQ(static_cast<int>(ExitCode::kInternal), 1);
  EXPECT_EQ(static_cast<int>(ExitCode::kUsage), 2);
  EXPECT_EQ(static_cast<int>(ExitCode::kBadData), 3);
  EXPECT_EQ(static_cast<int>(ExitCode::kExhausted), 4);
  EXPECT_EQ(static_cast<int>(ExitCode::kNumeric), 5);
  EXPECT_EQ(static_cast<int>(ExitCode::kCommunication), 6);
  EXPECT_EQ(static_cast<int>(ExitCode::kDoesNotFit), 7);
  EXPECT_EQ(static_cast<int>(ExitCode::kExtrapolates), 8);
  EXPECT_EQ(static_cast<int>(ExitCode::kResumable), 75);
}

}  // namespace
}  // namespace farspan
