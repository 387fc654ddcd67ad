#include "model/recompute.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/error.h"
#include "model/loss_head.h"
#include "support/engine_runs.h"
#include "support/tiny_config.h"

namespace farspan {
namespace {

// Gradient checkpointing repeats the same kernels on the same inputs, and a host copy is a copy.
TEST(Recompute, AllPoliciesGiveBitwiseEqualWeights) {
  for (const char* precision : {"fp32", "bf16"}) {
    config::RunConfig config = testing::tiny_config(precision);
    config.mutable_parallel()->set_context(2);
    config.mutable_train()->set_steps(10);
    config.mutable_model()->set_num_hidden_layers(5);  // offload reuses its buffers
    const auto none = testing::run_engine(config);
    for (const char* policy : {"selective", "full", "full+attention", "offload"}) {
      SCOPED_TRACE(std::string(precision) + " " + policy);
      config.mutable_train()->set_recompute(policy);
      const auto other = testing::run_engine(config);
      EXPECT_EQ(other.gradients, none.gradients);
      EXPECT_EQ(other.weights, none.weights);
    }
    config.mutable_train()->set_recompute("none");
  }
}

// Strategies lay out what is kept in their own ways.
TEST(Recompute, OffloadIsBitwiseEqualUnderEveryStrategyAndInvariantMode) {
  struct Case {
    const char* attention;
    int context, ulysses;
    bool invariant;
  };
  for (const Case c :
       {Case{"ring", 3, 1, false}, Case{"allgather", 3, 1, false}, Case{"ulysses", 2, 2, false},
        Case{"hybrid", 4, 2, false}, Case{"allgather", 2, 1, true}}) {
    SCOPED_TRACE(std::string(c.attention) + (c.invariant ? " invariant" : ""));
    config::RunConfig config = testing::tiny_config();
    config.mutable_parallel()->set_attention(c.attention);
    config.mutable_parallel()->set_context(c.context);
    config.mutable_parallel()->set_ulysses(c.ulysses);
    config.mutable_parallel()->set_invariant(c.invariant);
    config.mutable_train()->set_steps(2);
    config.mutable_train()->set_token_tile(10);
    config.mutable_model()->set_num_hidden_layers(4);
    const auto none = testing::run_engine(config);
    config.mutable_train()->set_recompute("offload");
    const auto offload = testing::run_engine(config);
    EXPECT_EQ(offload.gradients, none.gradients);
    EXPECT_EQ(offload.weights, none.weights);
  }
}

// Tiles change the order of sums over tokens, and nothing else.
TEST(TokenTiles, GradientsEqualThoseOfOneTile) {
  for (const char* policy : {"none", "full+attention"}) {
    config::RunConfig config = testing::tiny_config();
    config.mutable_train()->set_steps(1);
    config.mutable_train()->set_recompute(policy);
    const auto whole = testing::run_engine(config);
    for (const int tile : {7, 16, 47}) {
      SCOPED_TRACE(fmt::format("{} tile {}", policy, tile));
      config.mutable_train()->set_token_tile(tile);
      const auto tiled = testing::run_engine(config);
      for (const auto& [name, gradient] : whole.gradients)
        EXPECT_LT(testing::relative_l2(tiled.gradients.at(name), gradient), 1e-6) << name;
    }
  }
}

TEST(TokenTiles, AllPoliciesGiveBitwiseEqualWeights) {
  config::RunConfig config = testing::tiny_config("bf16");
  config.mutable_train()->set_steps(3);
  config.mutable_train()->set_token_tile(20);
  const auto none = testing::run_engine(config);
  for (const char* policy : {"selective", "full", "full+attention", "offload"}) {
    config.mutable_train()->set_recompute(policy);
    EXPECT_EQ(testing::run_engine(config).weights, none.weights) << policy;
  }
}

// Its sums are exact, and a tile is one of its blocks.
TEST(TokenTiles, BitsDoNotChangeInInvariantMode) {
  config::RunConfig config = testing::tiny_config();
  config.mutable_train()->set_sequence_length(300);  // three blocks
  config.mutable_train()->set_batch_tokens(300);
  config.mutable_train()->set_steps(2);
  config.mutable_parallel()->set_attention("allgather");
  config.mutable_parallel()->set_invariant(true);
  const auto whole = testing::run_engine(config);
  config.mutable_train()->set_token_tile(100);
  const auto tiled = testing::run_engine(config);
  EXPECT_EQ(tiled.gradients, whole.gradients);
  EXPECT_EQ(tiled.weights, whole.weights);
}

TEST(Recompute, KeepsLessMemoryTheMoreItRecomputes) {
  config::RunConfig config = testing::tiny_config();
  std::size_t last = SIZE_MAX;
  for (const char* policy : {"none", "selective", "full+attention", "full"}) {
    config.mutable_train()->set_recompute(policy);
    const std::size_t bytes = dry_run(config, 0, 1).sizes.activations;
    EXPECT_LT(bytes, last) << policy;
    last = bytes;
  }
}

TEST(Recompute, OffloadedActivationsOnTheDeviceDoNotGrowWithTheLayers) {
  const auto report = [](int layers, const char* policy) {
    config::RunConfig config = testing::tiny_config();
    config.mutable_train()->set_sequence_length(4096);
    config.mutable_train()->set_batch_tokens(4096);
    config.mutable_model()->set_num_hidden_layers(layers);
    config.mutable_train()->set_recompute(policy);
    return dry_run(config, 0, 1);
  };
  const auto few = report(4, "offload"), many = report(24, "offload");
  EXPECT_EQ(many.sizes.activations, few.sizes.activations);
  EXPECT_EQ(many.sizes.scratch, few.sizes.scratch);
  // Inputs of all layers but the last, attention's output and log-sum-exp likewise: f32.
  const std::size_t layer = 4096 * (32 + 32 + 4) * 4;
  EXPECT_EQ(few.sizes.host, 3 * layer);
  EXPECT_EQ(many.sizes.host, 23 * layer);
  EXPECT_EQ(report(24, "full+attention").sizes.host, 0u);
  EXPECT_EQ(report(24, "full+attention").sizes.scratch, many.sizes.scratch);
  EXPECT_EQ(many.total_bytes(), many.sizes.on_device() + many.host_bytes());
}

// A tile's worth of the MLP, however long the sequence.
TEST(TokenTiles, BoundWhatIsAsWideAsTheMlp) {
  config::RunConfig config = testing::tiny_config("bf16");
  config.mutable_model()->set_intermediate_size(4096);  // 128 times the hidden size
  config.mutable_train()->set_recompute("full+attention");
  config.mutable_train()->set_token_tile(1024);
  const auto scratch = [&](std::int64_t length) {
    config.mutable_train()->set_sequence_length(length);
    config.mutable_train()->set_batch_tokens(length);
    return dry_run(config, 0, 1).sizes.scratch;
  };
  const auto per_token = static_cast<double>(scratch(16384) - scratch(8192)) / 8192;
  EXPECT_LT(per_token, 32 * 32);  // a few rows of the residual stream; the MLP alone has 4 x 8192
  EXPECT_LT(scratch(8192), 1024u * 4 * 4096 * 2 + 8192u * 32 * 32);
}

// A GPU's matmul wants 1k rows or more; float32 logits of all tokens would be 67 GB here.
TEST(LossHead, ChunksOnAGpuStayBelowAGigabyteAtLargeVocabularies) {
  config::RunConfig config = testing::tiny_config("bf16");
  config.mutable_model()->set_vocab_size(128256);
  config.mutable_train()->set_sequence_length(131072);
  config.mutable_train()->set_batch_tokens(131072);
  config.mutable_train()->set_recompute("full+attention");
  const auto loss_bytes = [&](const char* device) {
    config.set_device(device);
    std::size_t bytes = 0;
    for (const auto& arena : dry_run(config, 0, 1).arenas)
      for (const Arena::Item& item : arena.items)
        if (item.name == "loss.logits" || item.name == "loss.dlogits") bytes += item.bytes;
    return bytes;
  };
  EXPECT_EQ(loss_bytes("cuda"), 1024u * 128256 * 6);  // the peak of scratch, so that it is listed
  ParameterStore parameters;
  Parameter& gain = parameters.add("gain", {32}, {});
  LossHead head(gain, parameters.add("head", {128256, 32}, {}), 1e-5f);
  EXPECT_EQ(head.chunk_rows(DeviceKind::kCuda), 1024);
  EXPECT_EQ(head.chunk_rows(DeviceKind::kCpu), 64);
}

TEST(Recompute, UnknownPolicyIsRefused) { EXPECT_THROW(RecomputePolicy::from("some"), Error); }

}  // namespace
}  // namespace farspan
