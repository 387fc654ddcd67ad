#include "core/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace farspan {
namespace {

float through(float value) { return static_cast<float>(BFloat16(value)); }

TEST(BFloat16, RoundsToNearestEven) {
  const float ulp = 0x1p-7f;  // at 1
  EXPECT_EQ(through(1.0f), 1.0f);
  EXPECT_EQ(through(1.0f + 0.49f * ulp), 1.0f);
  EXPECT_EQ(through(1.0f + 0.51f * ulp), 1.0f + ulp);
  EXPECT_EQ(through(1.0f + 0.5f * ulp), 1.0f) << "a tie goes to the even neighbour below";
  EXPECT_EQ(through(1.0f + 1.5f * ulp), 1.0f + 2 * ulp) << "and to the even neighbour above";
  EXPECT_EQ(through(-1.0f - 1.5f * ulp), -1.0f - 2 * ulp);
}

TEST(BFloat16, KeepsWhatIsSpecial) {
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(through(infinity), infinity);
  EXPECT_EQ(through(-infinity), -infinity);
  EXPECT_EQ(through(std::numeric_limits<float>::max()), infinity) << "rounds past the largest";
  EXPECT_TRUE(std::signbit(through(-0.0f)));
  EXPECT_TRUE(std::isnan(through(std::numeric_limits<float>::quiet_NaN())));
  // A NaN whose payload sits only in the bits cut off must not become infinity.
  EXPECT_TRUE(std::isnan(through(std::bit_cast<float>(0x7f800001u))));
  EXPECT_TRUE(std::isnan(through(std::bit_cast<float>(0xffffffffu))));
}

TEST(BFloat16, EveryValueSurvivesWideningAndRounding) {
  for (std::uint32_t bits = 0; bits < 0x10000u; ++bits) {
    BFloat16 b;
    b.bits = static_cast<std::uint16_t>(bits);
    const float wide = static_cast<float>(b);
    if (std::isnan(wide)) continue;
    ASSERT_EQ(BFloat16(wide).bits, bits) << wide;
  }
}

TEST(DType, SizesAndNames) {
  EXPECT_EQ(size_of(DType::kBF16), 2u);
  EXPECT_EQ(size_of(DType::kF32), 4u);
  EXPECT_EQ(size_of(DType::kI64), 8u);
  EXPECT_EQ(size_of(DType::kU8), 1u);
  EXPECT_EQ(name_of(DType::kBF16), "bf16");
  EXPECT_EQ(name_of(DType::kU16), "u16");
}

}  // namespace
}  // namespace farspan
