// Golden values: tests/golden/rotary.json, by scripts/make_golden.py.
#include "model/rotary.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "support/device_values.h"

namespace farspan {
namespace {

using nlohmann::json;

config::RopeScaling scaling_of(const json& c) {
  config::RopeScaling scaling;
  scaling.set_type(c["type"]);
  if (c.contains("s")) scaling.set_factor(c["s"]);
  if (c.contains("L")) scaling.set_original_context(c["L"]);
  if (c.contains("form")) scaling.set_form(c["form"]);
  for (const double f : c.value("short", std::vector<double>())) scaling.add_short_factor(f);
  for (const double f : c.value("long", std::vector<double>())) scaling.add_long_factor(f);
  return scaling;
}

RotaryTable table_of(const json& c) {
  return rotary_table({.theta = c["theta"],
                       .head_dim = c["d"],
                       .scaling = scaling_of(c),
                       .document_length = c.value("length", std::int64_t{0})});
}

std::vector<json> golden_cases() {
  std::ifstream file(FARSPAN_SOURCE_DIR "/tests/golden/rotary.json");
  return json::parse(file).get<std::vector<json>>();
}

class Rotary : public ::testing::TestWithParam<json> {};

TEST_P(Rotary, Frequencies) {
  const json& c = GetParam();
  const RotaryTable table = table_of(c);
  const std::vector<double> expected = c["inv_freq"];
  ASSERT_EQ(table.inv_freq.size(), expected.size());
  for (std::size_t j = 0; j < expected.size(); ++j)
    EXPECT_NEAR(table.inv_freq[j], expected[j], 1e-12 * expected[j]) << "pair " << j;
  EXPECT_NEAR(table.attention_scale, c["scale"], 1e-14);
}

TEST_P(Rotary, TablesFarOut) {
  const json& c = GetParam();
  const RotaryTable table = table_of(c);
  const auto backend = make_backend({.kind = DeviceKind::kCpu});
  testing::DeviceValues on(*backend);
  const auto half = static_cast<std::int64_t>(table.inv_freq.size());
  for (const json& at : c["tables"]) {
    const Tensor cos = on.poisoned(DType::kF32, {1, half}),
                 sin = on.poisoned(DType::kF32, {1, half});
    backend->kernels().rope_table({.positions = on.put({at["position"]}, DType::kI32, {1}),
                                   .inv_freq = on.put(table.inv_freq, DType::kF64, {half}),
                                   .cos = cos,
                                   .sin = sin,
                                   .attention_scale = table.attention_scale},
                                  backend->stream());
    const std::vector<double> cosines = on.get(cos), sines = on.get(sin);
    for (std::size_t j = 0; j < cosines.size(); ++j) {
      EXPECT_NEAR(cosines[j], at["cos"][j], 1e-6) << "pair " << j << " at " << at["position"];
      EXPECT_NEAR(sines[j], at["sin"][j], 1e-6) << "pair " << j << " at " << at["position"];
    }
  }
}

std::string name_of_case(const ::testing::TestParamInfo<json>& info) {
  return fmt::format("{}_{}", info.index, info.param["type"].get<std::string>());
}
INSTANTIATE_TEST_SUITE_P(Golden, Rotary, ::testing::ValuesIn(golden_cases()), name_of_case);

// NTK's base for d = 128, s = 8, as quoted.
TEST(RotaryTable, NtkBase) {
  config::RopeScaling scaling;
  scaling.set_type("ntk");
  scaling.set_factor(8);
  const RotaryTable table = rotary_table({.theta = 1e4, .head_dim = 128, .scaling = scaling});
  EXPECT_NEAR(std::pow(table.inv_freq[1], -64.0), 82685, 1);
  EXPECT_EQ(table.inv_freq[0], 1.0);
  EXPECT_NEAR(table.inv_freq[63] * 8, std::pow(1e4, -126.0 / 128), 1e-15);
}

TEST(RotaryTable, YarnBorders) {
  EXPECT_EQ(std::floor(yarn_dimension(32, 128, 1e4, 4096)), 20);
  EXPECT_EQ(std::ceil(yarn_dimension(1, 128, 1e4, 4096)), 46);
}

TEST(RotaryTable, AttentionFactorReplacesTheRule) {
  config::RopeScaling scaling;
  scaling.set_type("yarn");
  scaling.set_factor(16);
  scaling.set_original_context(4096);
  scaling.set_attention_factor(1);
  EXPECT_EQ(rotary_table({.theta = 1e4, .head_dim = 128, .scaling = scaling}).attention_scale, 1);
}

// The two published forms of YaRN differ by up to 16 at 2k -> 128k.
TEST(RotaryTable, FormsOfYarnDiffer) {
  config::RopeScaling scaling;
  scaling.set_type("yarn");
  scaling.set_factor(64);
  scaling.set_original_context(2048);
  const RotaryArgs hf{.theta = 1e4, .head_dim = 128, .scaling = scaling};
  scaling.set_form("pose");
  const RotaryArgs pose{.theta = 1e4, .head_dim = 128, .scaling = scaling};
  double most = 1;
  for (std::size_t j = 0; j < 64; ++j)
    most = std::max(most, rotary_table(hf).inv_freq[j] / rotary_table(pose).inv_freq[j]);
  EXPECT_GT(most, 14);
  EXPECT_LT(most, 17);
}

config::RopeScaling longrope() {
  config::RopeScaling scaling;
  scaling.set_type("longrope");
  scaling.set_factor(32);
  scaling.set_original_context(4096);
  for (int j = 0; j < 4; ++j) {
    scaling.add_short_factor(1);
    scaling.add_long_factor(2 + j);
  }
  return scaling;
}

TEST(RotaryTable, LongRopeGrowsScoresWhateverTheLength) {
  RotaryArgs args{.head_dim = 8, .scaling = longrope()};
  EXPECT_NEAR(rotary_table(args).attention_scale, std::sqrt(1 + 5.0 / 12), 1e-12);
  EXPECT_EQ(rotary_table(args).inv_freq[0], 1);
  args.document_length = 4097;
  EXPECT_EQ(rotary_table(args).inv_freq[0], 0.5);
  EXPECT_NEAR(rotary_table(args).attention_scale, std::sqrt(1 + 5.0 / 12), 1e-12);
  args.scaling.set_attention_factor(1.5);
  EXPECT_EQ(rotary_table(args).attention_scale, 1.5);
}

TEST(RotaryTable, TablesOfABatchesDocuments) {
  const RotaryArgs longs{.head_dim = 8, .scaling = longrope()};
  const RotaryTables two = rotary_tables(longs, {4096, 5000, 1, 9000});
  EXPECT_EQ(two.ids, (std::vector<std::int32_t>{0, 1, 0, 1}));
  EXPECT_EQ(two.inv_freq.size(), 8u);
  RotaryArgs dynamic{.head_dim = 8};
  dynamic.scaling.set_type("dynamic");
  dynamic.scaling.set_factor(2);
  dynamic.scaling.set_original_context(100);
  const RotaryTables many = rotary_tables(dynamic, {300, 100, 200, 300, 50});
  EXPECT_EQ(many.ids, (std::vector<std::int32_t>{1, 0, 2, 1, 0}));
  dynamic.document_length = 200;
  const auto table = rotary_table(dynamic).inv_freq;
  EXPECT_EQ(std::vector<double>(many.inv_freq.begin() + 8, many.inv_freq.end()), table);
  EXPECT_NEAR(std::pow(table[1], -4.0), 10000 * std::pow(3, 8.0 / 6), 1e-7);
}

}  // namespace
}  // namespace farspan
