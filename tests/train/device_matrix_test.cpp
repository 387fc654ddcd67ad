// The whole model on a GPU, or on the emulated one: masks, positions, recomputation, strategies.
#include "train/device_runs.h"
#include "train/sharding_matrix.h"

namespace farspan::testing {
namespace {

TEST_F(OnDevice, EveryMaskAndPosition) {
  for (const std::string mask : {"window", "mixed layers", "scaled layers", "sinks", "alibi",
                                 "xpos", "none", "dilated", "bigbird", "s2"}) {
    SCOPED_TRACE(mask);
    config::RunConfig c = matrix_model(mask);
    c.mutable_model()->set_num_attention_heads(4);
    c.mutable_model()->set_num_key_value_heads(2);
    c.mutable_train()->set_batch_tokens(c.train().sequence_length());
    expect_near(on_device(c), run_engine(c));
  }
}

TEST_F(OnDevice, RecomputationAndOffloadingChangeNoBit) {
  config::RunConfig c = tensor_core_model();
  const EngineRun plain = on_device(c);
  EXPECT_EQ(differences(on_device(c), plain), "") << "the same twice";
  for (const char* policy : {"selective", "full", "full+attention", "offload"}) {
    c.mutable_train()->set_recompute(policy);
    EXPECT_EQ(differences(on_device(c), plain), "") << policy;
  }
}

TEST_F(OnDevice, AnyStrategyOverTwoRanks) {
  config::RunConfig one = tiny_config();
  one.mutable_train()->set_steps(1);
  const EngineRun expected = run_engine(one);
  for (const char* attention : {"ring", "allgather", "ulysses"})
    for (const char* layout : {"contiguous", "zigzag"}) {
      SCOPED_TRACE(fmt::format("{}, {}", attention, layout));
      config::RunConfig c = one;
      c.mutable_parallel()->set_context(2);
      c.mutable_parallel()->set_ulysses(std::string(attention) == "ulysses" ? 2 : 1);
      c.mutable_parallel()->set_attention(attention);
      c.mutable_parallel()->set_layout(layout);
      expect_near(on_device(c), expected);
    }
  config::RunConfig c = one;
  c.mutable_parallel()->set_data(2);
  expect_near(on_device(c), expected);
}

TEST_F(OnDevice, FourRanksInARingAndAHybrid) {
  config::RunConfig c = tiny_config();
  c.mutable_train()->set_steps(1);
  const EngineRun expected = run_engine(c);
  c.mutable_parallel()->set_context(4);
  c.mutable_parallel()->set_layout("zigzag");
  c.mutable_parallel()->set_attention("ring");
  expect_near(on_device(c), expected);
  c.mutable_parallel()->set_attention("hybrid");
  c.mutable_parallel()->set_ulysses(2);
  expect_near(on_device(c), expected);
}

TEST_F(OnDevice, InvariantModeGivesTheSameBitsOnAnyRanks) {
  config::RunConfig c = tiny_config("bf16");
  c.mutable_parallel()->set_invariant(true);
  c.mutable_parallel()->set_attention("allgather");
  c.mutable_train()->set_sequence_length(300);
  c.mutable_train()->set_batch_tokens(300);
  c.mutable_train()->set_steps(2);
  const EngineRun one = on_device(c, 260);
  c.mutable_parallel()->set_context(2);
  c.mutable_parallel()->set_layout("zigzag");
  EXPECT_EQ(differences(on_device(c, 260), one), "");
}

}  // namespace
}  // namespace farspan::testing
