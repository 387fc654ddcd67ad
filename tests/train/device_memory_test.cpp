// What a GPU holds after a step, against what the dry run said. On the emulated device the model is
// small, and what CUDA itself takes is nothing.
#include <gtest/gtest.h>

#include <cmath>

#include "comm/factory.h"
#include "support/engine_runs.h"
#include "support/tiny_config.h"
#include "train/device_overhead.h"

namespace farspan {
namespace {

config::RunConfig config_for(const char* recompute, bool emulated) {
  config::RunConfig c = testing::tiny_config("bf16");
  c.set_device("cuda");
  c.mutable_parallel()->set_attention_kernel("own");
  c.mutable_evaluation()->set_every(0);
  auto& t = *c.mutable_train();
  t.set_recompute(recompute);
  auto& m = *c.mutable_model();
  m.set_num_hidden_layers(4);
  if (emulated) return c;
  m.set_vocab_size(32000);
  m.set_hidden_size(1024);
  m.set_intermediate_size(4096);
  m.set_num_attention_heads(16);
  m.set_num_key_value_heads(4);
  m.set_head_dim(64);
  m.set_initializer_range(0.02);
  t.set_sequence_length(16384);
  t.set_batch_tokens(16384);
  return c;
}

class DeviceMemoryOf : public ::testing::TestWithParam<const char*> {};

TEST_P(DeviceMemoryOf, AStepIsWithinThreePercentOfThePrediction) {
  if (num_devices(DeviceKind::kCuda) == 0) GTEST_SKIP() << "no GPU here";
  const auto backend = make_backend({.kind = DeviceKind::kCuda});
  const bool emulated = backend->device().name().find("Emulated") != std::string::npos;
  const config::RunConfig config = config_for(GetParam(), emulated);
  const DryRunReport report = dry_run(config, 0, 1);
  const auto self = make_self_communicator();
  const auto world = make_staged_communicator(*self, backend->device());
  const Mesh mesh = make_mesh(config, *world);
  Trace trace;
  Engine engine(config, *backend, mesh, report.sizes, trace);
  engine.initialize();
  const config::Train& train = config.train();
  const Batch batch =
      testing::random_batch(1, 1, train.sequence_length(), config.model().vocab_size(), 0);
  Sharder sharder(Sharding::from(config, mesh.place()));
  const std::vector<MicroBatch> micro(
      static_cast<std::size_t>(train.batch_tokens() / train.sequence_length()), sharder(batch));
  engine.train_step(micro, 1e-3, {});
  EXPECT_TRUE(std::isfinite(engine.read_step().loss()));

  // What Farspan took: arenas and workspaces, exactly counted.
  std::size_t outside = 0;
  for (const MemoryItem& item : device_overhead(config)) outside += item.bytes;
  const auto predicted = static_cast<double>(report.device_bytes() - outside);
  const auto taken = static_cast<double>(backend->device().taken().most);
  EXPECT_NEAR(taken / predicted, 1, 0.03) << taken << " taken, " << predicted << " predicted";
  // cuBLASLt's workspace hides the others of a small model.
  if (emulated) {
    EXPECT_NEAR(taken, predicted, 32 << 10);
  }

  // With CUDA's own share, which the constant stands for; other programs' on the GPU count too.
  const auto memory = backend->device().memory();
  ASSERT_TRUE(memory.has_value());
  const double rest = static_cast<double>(memory->total - memory->free) -
                      static_cast<double>(backend->device().taken().now);
  std::printf("CUDA's own and other programs': %.0f MiB; kCudaContextBytes: %.0f MiB\n",
              rest / (1 << 20), static_cast<double>(kCudaContextBytes) / (1 << 20));
}

// Copies to host memory and back beside the compute, ordered by events alone.
TEST(DeviceOffload, GradientsAreBitwiseThoseOfKeepingAll) {
  if (num_devices(DeviceKind::kCuda) == 0) GTEST_SKIP() << "no GPU here";
  config::RunConfig config = config_for("none", /*emulated=*/true);
  config.mutable_train()->set_steps(2);
  config.mutable_train()->set_token_tile(20);
  const auto none = testing::run_engine(config, 30, 1, DeviceKind::kCuda);
  config.mutable_train()->set_recompute("offload");
  const auto offload = testing::run_engine(config, 30, 1, DeviceKind::kCuda);
  EXPECT_TRUE(offload.gradients == none.gradients);
  EXPECT_TRUE(offload.weights == none.weights);
}

std::string name_of_policy(const ::testing::TestParamInfo<const char*>& policy) {
  const std::string name = policy.param;
  return name == "full+attention" ? "attention_kept" : name;
}
INSTANTIATE_TEST_SUITE_P(Policies, DeviceMemoryOf,
                         ::testing::Values("none", "full+attention", "offload"), name_of_policy);

}  // namespace
}  // namespace farspan
