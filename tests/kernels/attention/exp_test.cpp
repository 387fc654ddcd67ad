// 2^x in vectors, of every instruction set.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/attention/kernel_table.h"
#include "kernels/cpu/isa.h"

namespace farspan::cpu {
namespace {

struct Named {
  CpuIsa isa;
  const KernelTable& (*table)();
};

class ExpTest : public ::testing::TestWithParam<Named> {};

TEST_P(ExpTest, WithinTwoUnitsInTheLastPlace) {
  if (!cpu_supports(GetParam().isa)) GTEST_SKIP() << "no " << name_of(GetParam().isa);
  std::vector<float> x;
  for (double at = 30.0; at > -126.0; at -= 1.37e-4) x.push_back(static_cast<float>(at));
  std::vector<float> y(x.size());
  GetParam().table().exp2(x.data(), y.data(), static_cast<Index>(x.size()));
  double worst = 0;
  float worst_at = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double exact = std::exp2(static_cast<double>(x[i]));
    const double unit = std::nextafter(static_cast<float>(exact), 2e9f) - static_cast<float>(exact);
    const double error = std::abs(static_cast<double>(y[i]) - exact) / unit;
    if (error > worst) worst = error, worst_at = x[i];
  }
  EXPECT_LE(worst, 2.0) << "at " << worst_at;
}

TEST_P(ExpTest, EndsOfTheRange) {
  if (!cpu_supports(GetParam().isa)) GTEST_SKIP() << "no " << name_of(GetParam().isa);
  const float infinity = std::numeric_limits<float>::infinity();
  const float x[] = {0.0f, -126.01f, -1e4f, -3e38f, -infinity, std::nanf("")};
  float y[6];
  GetParam().table().exp2(x, y, 6);
  EXPECT_EQ(y[0], 1.0f);
  for (int i = 1; i < 5; ++i) EXPECT_EQ(y[i], 0.0f) << "at " << x[i];
  EXPECT_TRUE(std::isnan(y[5]));
}

INSTANTIATE_TEST_SUITE_P(All, ExpTest,
                         ::testing::Values(Named{CpuIsa::kPortable, portable_f32},
                                           Named{CpuIsa::kAvx2, avx2_f32},
                                           Named{CpuIsa::kAvx512, avx512_f32}),
                         [](const auto& test) { return std::string(name_of(test.param.isa)); });

}  // namespace
}  // namespace farspan::cpu
