// Training with the CUDA kernels on an emulated GPU (docs/emulation.md) that thread ranks share:
// each strategy on 2 and 4 ranks equals the CPU on one.
#include <gtest/gtest.h>

#include "support/engine_runs.h"
#include "support/tiny_config.h"

namespace farspan::testing {
namespace {

struct Way {
  const char* attention;
  int context = 1;
  int ulysses = 1;
};

void PrintTo(const Way& way, std::ostream* out) { *out << way.attention << " " << way.context; }

class EmulatedRanks : public ::testing::TestWithParam<Way> {};

TEST_P(EmulatedRanks, TrainAsOneRankOfTheCpu) {
  config::RunConfig config = tiny_config();
  config.mutable_train()->set_steps(2);
  config.mutable_parallel()->set_attention("ring");
  config.mutable_parallel()->set_layout("contiguous");
  const EngineRun one = run_engine(config);
  config.mutable_parallel()->set_layout("zigzag");
  config.mutable_parallel()->set_attention(GetParam().attention);
  config.mutable_parallel()->set_context(GetParam().context);
  config.mutable_parallel()->set_ulysses(GetParam().ulysses);
  const EngineRun there =
      run_engine_on(config, [](int) { return make_backend({.kind = DeviceKind::kCuda}); });
  for (std::size_t s = 0; s < one.steps.size(); ++s) {
    EXPECT_NEAR(there.steps[s].loss, one.steps[s].loss, 1e-5 * one.steps[s].loss) << "step " << s;
    EXPECT_EQ(there.steps[s].valid_tokens, one.steps[s].valid_tokens);
  }
  for (const auto& [name, gradient] : one.gradients)
    EXPECT_LE(relative_l2(there.gradients.at(name), gradient), 1e-4) << name;
}

INSTANTIATE_TEST_SUITE_P(Ways, EmulatedRanks,
                         ::testing::Values(Way{"ring"}, Way{"ring", 2}, Way{"ring", 4},
                                           Way{"allgather", 2}, Way{"ulysses", 2, 2},
                                           Way{"hybrid", 4, 2}));

}  // namespace
}  // namespace farspan::testing
