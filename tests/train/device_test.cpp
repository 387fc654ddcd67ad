// The whole model on a GPU, or on the emulated one: the least that must hold. The rest:
// device_matrix_test.cpp.
#include "train/device_runs.h"

namespace farspan::testing {
namespace {

TEST_F(OnDevice, TrainsInF32AsOnTheCpu) {
  for (const bool tied : {true, false}) {
    config::RunConfig c = tiny_config();
    c.mutable_model()->set_tie_word_embeddings(tied);
    expect_near(on_device(c), run_engine(c));
  }
}

TEST_F(OnDevice, TrainsInBf16AsOnTheCpu) {
  for (config::RunConfig c : {tiny_config("bf16"), tensor_core_model()}) {
    c.mutable_train()->set_steps(2);
    const EngineRun device = on_device(c, 70), cpu = run_engine(c, 70);
    c.mutable_train()->set_precision("fp32");
    expect_as_precise(device, cpu, run_engine(c, 70));
  }
}

TEST_F(OnDevice, TwoRanksAreAsOne) {
  config::RunConfig c = tiny_config();
  c.mutable_train()->set_steps(2);
  const EngineRun one = run_engine(c);
  c.mutable_parallel()->set_context(2);
  c.mutable_parallel()->set_attention("ring");
  c.mutable_parallel()->set_layout("zigzag");
  expect_near(on_device(c), one);
}

TEST_F(OnDevice, RecomputationChangesNoBit) {
  config::RunConfig c = tensor_core_model();
  c.mutable_train()->set_steps(1);
  const EngineRun plain = on_device(c);
  c.mutable_train()->set_recompute("full+attention");
  EXPECT_EQ(differences(on_device(c), plain), "");
}

}  // namespace
}  // namespace farspan::testing
