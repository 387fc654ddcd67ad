#include "model/position.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/error.h"
#include "support/tiny_config.h"

namespace farspan {
namespace {

config::Model model_of(const char* position) {
  config::Model model = testing::tiny_config().model();
  model.set_position(position);
  return model;
}

TEST(Position, RotaryFrequencies) {
  const PositionTable table = make_position_table(model_of("rope"));
  ASSERT_EQ(table.inv_freq.size(), 4u);
  for (std::size_t j = 0; j < 4; ++j)
    EXPECT_DOUBLE_EQ(table.inv_freq[j], std::pow(10.0, -static_cast<double>(j)));  // 10000^(-2j/8)
  EXPECT_TRUE(table.slopes.empty());
  EXPECT_TRUE(table.decay.empty());
}

// The slopes that the paper's authors publish for 8 heads.
TEST(Position, AlibiSlopesOfAPowerOfTwo) {
  const std::vector<double> expected = {0.5,     0.25,     0.125,     0.0625,
                                        0.03125, 0.015625, 0.0078125, 0.00390625};
  EXPECT_EQ(alibi_slopes(8), expected);
  EXPECT_EQ(alibi_slopes(1), std::vector<double>{0.00390625});
  EXPECT_EQ(alibi_slopes(2), (std::vector<double>{0.0625, 0.00390625}));
}

// 12 heads: those of 8, then the 1st, 3rd, 5th and 7th of 16.
TEST(Position, AlibiSlopesOfOtherNumbers) {
  const std::vector<double> expected = {0.5,
                                        0.25,
                                        0.125,
                                        0.0625,
                                        0.03125,
                                        0.015625,
                                        0.0078125,
                                        0.00390625,
                                        0.70710678118654752,
                                        0.35355339059327376,
                                        0.17677669529663688,
                                        0.08838834764831844};
  const std::vector<double> slopes = alibi_slopes(12);
  ASSERT_EQ(slopes.size(), expected.size());
  for (std::size_t h = 0; h < expected.size(); ++h)
    EXPECT_NEAR(slopes[h], expected[h], 1e-15) << "head " << h;
  config::Model model = model_of("alibi");
  model.set_num_attention_heads(12);
  const PositionTable table = make_position_table(model);
  EXPECT_EQ(table.slopes, slopes);
  EXPECT_TRUE(table.inv_freq.empty()) << "nothing is rotated";
}

TEST(Position, XposDecaysAndRotates) {
  config::Model model = model_of("xpos");
  const PositionTable table = make_position_table(model);
  EXPECT_EQ(table.inv_freq.size(), 4u);
  ASSERT_EQ(table.decay.size(), 4u);
  // zeta = (0, .25, .5, .75) + 0.4 over 1.4, over 512 tokens.
  const double zeta[] = {0.2857142857142857, 0.4642857142857143, 0.6428571428571429,
                         0.8214285714285714};
  for (std::size_t c = 0; c < 4; ++c) {
    EXPECT_NEAR(std::exp2(512 * table.decay[c]), zeta[c], 1e-12);
    EXPECT_LT(table.decay[c], 0);
  }
  model.set_xpos_scale_base(64);
  EXPECT_NEAR(make_position_table(model).decay[0], 8 * table.decay[0], 1e-15);
}

TEST(Position, NoneHasNoTables) {
  const PositionTable table = make_position_table(model_of("none"));
  EXPECT_TRUE(table.inv_freq.empty() && table.slopes.empty() && table.decay.empty());
}

TEST(Position, ScalingReachesTheTable) {
  config::Model model = model_of("rope");
  auto& scaling = *model.mutable_rope()->mutable_scaling();
  scaling.set_type("yarn");
  scaling.set_factor(4);
  scaling.set_original_context(64);
  const PositionTable table = make_position_table(model),
                      plain = make_position_table(model_of("rope"));
  EXPECT_NEAR(table.inv_freq[3] * 4, plain.inv_freq[3], 1e-15);
  EXPECT_NEAR(table.attention_scale, 0.1 * std::log(4.0) + 1, 1e-15);
}

TEST(Position, SinusoidsOfTheEmbedding) {
  config::Model model = model_of("sinusoidal");
  model.set_hidden_size(8);
  const PositionTable table = make_position_table(model);
  EXPECT_TRUE(table.inv_freq.empty());
  ASSERT_EQ(table.sinusoid.size(), 4u);
  for (std::size_t j = 0; j < 4; ++j)
    EXPECT_NEAR(table.sinusoid[j], std::pow(10000.0, -2.0 * static_cast<double>(j) / 8), 1e-15);
}

}  // namespace
}  // namespace farspan
