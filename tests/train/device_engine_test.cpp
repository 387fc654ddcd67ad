// Training on a device that works in its own time, over thread ranks: the bits of the CPU's run,
// for every strategy, because kernels and sums are the CPU's. What the host reads too early, or a
// queue runs too early, differs.
#include <gtest/gtest.h>

#include <cstring>
#include <mutex>

#include "support/async_backend.h"
#include "support/engine_runs.h"
#include "support/tiny_config.h"
#include "train/run_checkpoint.h"

namespace farspan::testing {
namespace {

struct Way {
  const char* attention;
  int context = 1;
  int data = 1;
  int ulysses = 1;
  const char* layout = "zigzag";
};

void PrintTo(const Way& way, std::ostream* out) {
  *out << way.attention << " " << way.context << "x" << way.data;
}

config::RunConfig config_of(const Way& way) {
  config::RunConfig c = tiny_config();
  c.mutable_train()->set_batch_tokens(192);
  auto& p = *c.mutable_parallel();
  p.set_attention(way.attention);
  p.set_layout(way.layout);
  p.set_context(way.context);
  p.set_data(way.data);
  p.set_ulysses(way.ulysses);
  return c;
}

void expect_same_bits(const EngineRun& a, const EngineRun& b) {
  ASSERT_EQ(a.steps.size(), b.steps.size());
  for (std::size_t i = 0; i < a.steps.size(); ++i) {
    EXPECT_EQ(a.steps[i].loss, b.steps[i].loss) << "step " << i;
    EXPECT_EQ(a.steps[i].grad_norm, b.steps[i].grad_norm) << "step " << i;
  }
  const auto same = [](const std::vector<float>& x, const std::vector<float>& y) {
    return x.size() == y.size() && std::memcmp(x.data(), y.data(), x.size() * 4) == 0;
  };
  for (const auto& [name, w] : a.weights) EXPECT_TRUE(same(w, b.weights.at(name))) << name;
  for (const auto& [name, g] : a.gradients) EXPECT_TRUE(same(g, b.gradients.at(name))) << name;
}

class DeviceEngine : public ::testing::TestWithParam<Way> {};

TEST_P(DeviceEngine, TrainsToTheBitsOfTheCpu) {
  const config::RunConfig config = config_of(GetParam());
  OpenAsyncDevice device(7);  // of all ranks
  const EngineRun there =
      run_engine_on(config, [&](int) { return std::make_unique<AsyncBackend>(device); });
  expect_same_bits(there, run_engine(config));
  EXPECT_EQ(device.pinned_bytes(), 0u);
}

INSTANTIATE_TEST_SUITE_P(Ways, DeviceEngine,
                         ::testing::Values(Way{"ring"}, Way{"ring", 2}, Way{"ring", 4},
                                           Way{"allgather", 2}, Way{"allgather", 4},
                                           Way{"ulysses", 2, 1, 2}, Way{"ulysses", 4, 1, 4},
                                           Way{"hybrid", 4, 1, 2}, Way{"ring", 2, 2},
                                           Way{"ring", 2, 1, 1, "balanced"}));

// A snapshot is the state of the step after which it was taken, whatever the next steps do
// meanwhile, and disturbs none of them.
TEST(DeviceSnapshot, HoldsItsStepWhileTheNextRuns) {
  const config::RunConfig config = config_of({"ring", 2});
  OpenAsyncDevice device(3);
  std::mutex mutex;
  std::map<std::string, std::vector<float>> expected, saved;
  std::map<int, std::unique_ptr<Snapshot>> snapshots;
  std::map<int, std::vector<TensorPiece>> pieces;
  const auto after = [&](Engine& engine, Communicator& hosts, std::int64_t step) {
    const std::lock_guard lock(mutex);
    const int rank = hosts.rank();
    if (step == 1) {
      if (rank == 0)
        for (const Parameter& p : engine.parameters().parameters()) {
          expected[p.name] = values_of(engine, p.master);
          expected["adamw.m/" + p.name] = values_of(engine, p.m);
          expected["adamw.v/" + p.name] = values_of(engine, p.v);
        }
      snapshots[rank] = std::make_unique<Snapshot>(engine, hosts);
      pieces[rank] = snapshots[rank]->take(engine);
    }
    if (step < 3) return;
    snapshots[rank]->wait();
    for (const TensorPiece& piece : pieces[rank]) {
      std::vector<float>& whole = saved[piece.name];
      whole.resize(static_cast<std::size_t>(piece.global_shape.numel()));
      std::memcpy(whole.data() + piece.offset, piece.data.data, piece.data.bytes());
    }
    snapshots[rank].reset();
  };
  const EngineRun there = run_engine_on(
      config, [&](int) { return std::make_unique<AsyncBackend>(device); }, 30, after);
  expect_same_bits(there, run_engine(config));
  ASSERT_EQ(saved.size(), expected.size());
  for (const auto& [name, values] : expected) EXPECT_EQ(saved[name], values) << name;
}

}  // namespace
}  // namespace farspan::testing
