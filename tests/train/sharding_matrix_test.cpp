// A sample of the matrix (tests/train/sharding_matrix.h); the whole is the program sharding_matrix.
#include "train/sharding_matrix.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <random>

namespace farspan {
namespace {

using testing::Deviation;
using testing::MatrixCell;
using testing::MatrixRunner;

constexpr std::uint64_t kSeed = 20240611;

// `count` cells, no strategy under any layout left out.
std::vector<MatrixCell> sample(std::vector<MatrixCell> cells, std::size_t count) {
  std::mt19937_64 rng(kSeed);
  std::shuffle(cells.begin(), cells.end(), rng);
  const std::size_t kinds = testing::matrix_layouts().size() * testing::matrix_strategies().size();
  const std::size_t most = (count + kinds - 1) / kinds;
  std::map<std::pair<std::string, std::string>, std::size_t> taken;
  std::vector<MatrixCell> out;
  for (const MatrixCell& cell : cells)
    if (cell.context > 1 && taken[{cell.layout, cell.strategy}]++ < most) out.push_back(cell);
  return out;
}

void expect_equal_to_one_rank(const std::vector<MatrixCell>& cells) {
  MatrixRunner runner;
  for (const MatrixCell& cell : cells) {
    SCOPED_TRACE(fmt::format("{} (sample of seed {})", cell.name(), kSeed));
    const Deviation d = runner.run(cell);
    EXPECT_LE(d.loss, 1e-6);
    EXPECT_LE(d.grad_norm, 1e-5);
    EXPECT_LE(d.gradient, 1e-4) << d.where;
  }
}

TEST(ShardingMatrix, EqualsOneRank) {
  expect_equal_to_one_rank(sample(testing::cells_of(testing::matrix_masks(), {1, 2}, {1, 2}), 40));
}

TEST(ShardingMatrix, FurtherMasksEqualOneRank) {
  expect_equal_to_one_rank(sample(testing::cells_of(testing::further_masks(), {1}, {1}), 32));
}

// The comparison must see an error of the size of one lost key.
TEST(ShardingMatrix, SeesASmallError) {
  config::RunConfig config = testing::matrix_model("window");
  const auto right = testing::run_engine(config, 0);
  config.mutable_model()->set_sliding_window(12);
  const auto wrong = testing::run_engine(config, 0);
  EXPECT_GT(std::abs(wrong.steps[0].loss / right.steps[0].loss - 1), 1e-5);
  EXPECT_GT(testing::relative_l2(wrong.gradients.at("model.layers.0.self_attn.q_proj.weight"),
                                 right.gradients.at("model.layers.0.self_attn.q_proj.weight")),
            1e-3);
}

}  // namespace
}  // namespace farspan
