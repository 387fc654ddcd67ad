// What a GPU holds after a step, against what the dry run said.
#include <gtest/gtest.h>

#include "comm/factory.h"
#include "support/engine_runs.h"
#include "support/tiny_config.h"
#include "train/device_overhead.h"

namespace farspan {
namespace {

config::RunConfig gpu_config(const char* recompute) {
  config::RunConfig c = testing::tiny_config("bf16");
  c.set_device("cuda");
  auto& m = *c.mutable_model();
  m.set_vocab_size(32000);
  m.set_hidden_size(1024);
  m.set_intermediate_size(4096);
  m.set_num_hidden_layers(4);
  m.set_num_attention_heads(16);
  m.set_num_key_value_heads(4);
  m.set_head_dim(64);
  m.set_initializer_range(0.02);
  auto& t = *c.mutable_train();
  t.set_sequence_length(16384);
  t.set_batch_tokens(16384);
  t.set_recompute(recompute);
  c.mutable_evaluation()->set_every(0);
  return c;
}

class DeviceMemoryOf : public ::testing::TestWithParam<const char*> {};

TEST_P(DeviceMemoryOf, AStepIsWithinThreePercentOfThePrediction) {
  if (num_devices(DeviceKind::kCuda) == 0) GTEST_SKIP() << "no GPU here";
  const config::RunConfig config = gpu_config(GetParam());
  const DryRunReport report = dry_run(config, 0, 1);
  const auto backend = make_backend({.kind = DeviceKind::kCuda});
  const auto world = make_self_communicator();
  const Mesh mesh = make_mesh(config, *world);
  Trace trace;
  Engine engine(config, *backend, mesh, report.sizes, trace);
  engine.initialize();
  const Batch batch =
      testing::random_batch(1, 1, config.train().sequence_length(), config.model().vocab_size(), 0);
  Sharder sharder(Sharding::from(config, mesh.place()));
  const MicroBatch micro = sharder(batch);
  engine.train_step({&micro, 1}, 1e-3, {});
  const StepResult result = engine.read_step();
  EXPECT_TRUE(std::isfinite(result.loss()));

  // What Farspan took: arenas and workspaces, exactly counted.
  std::size_t outside = 0;
  for (const MemoryItem& item : device_overhead(config)) outside += item.bytes;
  const auto predicted = static_cast<double>(report.device_bytes() - outside);
  const auto taken = static_cast<double>(backend->device().taken().most);
  EXPECT_NEAR(taken / predicted, 1, 0.03) << taken << " taken, " << predicted << " predicted";

  // With CUDA's own share, which the constant stands for; other programs' on the GPU count too.
  const auto memory = backend->device().memory();
  ASSERT_TRUE(memory.has_value());
  const double context = static_cast<double>(memory->total - memory->free) -
                         static_cast<double>(backend->device().taken().now);
  std::printf("CUDA's own and other programs': %.0f MiB; kCudaContextBytes: %.0f MiB\n",
              context / (1 << 20), static_cast<double>(kCudaContextBytes) / (1 << 20));
}

INSTANTIATE_TEST_SUITE_P(Policies, DeviceMemoryOf,
                         ::testing::Values("none", "full+attention", "offload"),
                         [](const auto& info) {
                           return std::string(info.param == std::string("full+attention")
                                                  ? "attention_kept"
                                                  : info.param);
                         });

}  // namespace
}  // namespace farspan
