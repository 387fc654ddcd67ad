// The whole model on a GPU, or on the emulated one, against the CPU: losses, gradients, weights.
#pragma once

#include <gtest/gtest.h>

#include <cstring>

#include "core/error.h"
#include "support/engine_runs.h"
#include "support/tiny_config.h"

namespace farspan::testing {

class OnDevice : public ::testing::Test {
 protected:
  void SetUp() override {
    try {
      make_backend({.kind = DeviceKind::kCuda});
    } catch (const Error& absent) {
      if (absent.code() != ExitCode::kUsage) throw;
      GTEST_SKIP() << absent.text().what;
    }
  }
};

inline EngineRun on_device(config::RunConfig config, std::int64_t longest = 30) {
  config.set_device("cuda");
  return run_engine(config, longest, 1, DeviceKind::kCuda);
}

inline double relative(double value, double expected) {
  return std::abs(value - expected) / std::abs(expected);
}

// In f32. Sums have another order; Adam's first steps, of the size of the learning rate whatever
// the gradient, carry a gradient's error near 0 into a weight undiminished.
inline void expect_near(const EngineRun& run, const EngineRun& expected) {
  ASSERT_EQ(run.steps.size(), expected.steps.size());
  for (std::size_t i = 0; i < run.steps.size(); ++i) {
    EXPECT_LE(relative(run.steps[i].loss, expected.steps[i].loss), 1e-5) << "step " << i;
    EXPECT_LE(relative(run.steps[i].grad_norm, expected.steps[i].grad_norm), 1e-4) << "step " << i;
    EXPECT_EQ(run.steps[i].valid_tokens, expected.steps[i].valid_tokens) << "step " << i;
  }
  for (const auto& [name, gradient] : expected.gradients)
    EXPECT_LE(relative_l2(run.gradients.at(name), gradient), 1e-4) << "d(" << name << ")";
  for (const auto& [name, weight] : expected.weights)
    EXPECT_LE(relative_l2(run.weights.at(name), weight), 1e-3) << name;
}

// In bf16: as far from the same run in f32 as the CPU's bf16 is.
inline void expect_as_precise(const EngineRun& run, const EngineRun& cpu, const EngineRun& exact) {
  constexpr double kMore = 1.5;
  for (std::size_t i = 0; i < exact.steps.size(); ++i) {
    const double loss = exact.steps[i].loss;
    EXPECT_LE(relative(run.steps[i].loss, loss), kMore * relative(cpu.steps[i].loss, loss) + 1e-3)
        << "step " << i;
  }
  for (const auto& [name, gradient] : exact.gradients)
    EXPECT_LE(relative_l2(run.gradients.at(name), gradient),
              kMore * relative_l2(cpu.gradients.at(name), gradient) + 1e-3)
        << "d(" << name << ")";
}

// The parameters whose gradients or weights differ in a bit.
inline std::string differences(const EngineRun& a, const EngineRun& b) {
  const auto same = [](const std::vector<float>& x, const std::vector<float>& y) {
    return x.size() == y.size() && std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) == 0;
  };
  std::string text;
  for (const auto& [name, weight] : a.weights)
    if (!same(weight, b.weights.at(name))) text += name + " ";
  for (const auto& [name, gradient] : a.gradients)
    if (!same(gradient, b.gradients.at(name))) text += "d(" + name + ") ";
  for (std::size_t i = 0; i < a.steps.size(); ++i)
    if (a.steps[i].loss != b.steps[i].loss) text += fmt::format("loss {} ", i);
  return text;
}

// Heads of 64, for which there are kernels on tensor cores.
inline config::RunConfig tensor_core_model() {
  config::RunConfig c = tiny_config("bf16");
  c.mutable_model()->set_hidden_size(64);
  c.mutable_model()->set_head_dim(64);
  c.mutable_model()->set_num_attention_heads(2);
  c.mutable_model()->set_num_key_value_heads(1);
  c.mutable_train()->set_sequence_length(100);
  c.mutable_train()->set_batch_tokens(200);
  c.mutable_train()->set_steps(2);
  return c;
}

}  // namespace farspan::testing
