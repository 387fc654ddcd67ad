#include "model/recompute.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/error.h"
#include "support/engine_runs.h"
#include "support/tiny_config.h"

namespace farspan {
namespace {

// Gradient checkpointing repeats the same kernels on the same inputs.
TEST(Recompute, AllPoliciesGiveBitwiseEqualWeights) {
  for (const char* precision : {"fp32", "bf16"}) {
    config::RunConfig config = testing::tiny_config(precision);
    config.mutable_parallel()->set_context(2);
    config.mutable_train()->set_steps(10);
    const auto none = testing::run_engine(config);
    for (const char* policy : {"selective", "full", "full+attention"}) {
      SCOPED_TRACE(std::string(precision) + " " + policy);
      config.mutable_train()->set_recompute(policy);
      const auto other = testing::run_engine(config);
      EXPECT_EQ(other.gradients, none.gradients);
      EXPECT_EQ(other.weights, none.weights);
    }
    config.mutable_train()->set_recompute("none");
  }
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

TEST(Recompute, UnknownPolicyIsRefused) { EXPECT_THROW(RecomputePolicy::from("offload"), Error); }

}  // namespace
}  // namespace farspan
