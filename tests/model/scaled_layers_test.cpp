// Rotary scaling of some layers only (model.rope.scaling.layers), against a model in double that is
// told the rotations of each layer, on any number of ranks.
#include <gtest/gtest.h>

#include <cmath>

#include "config/layer_types.h"
#include "model/position.h"
#include "support/engine_runs.h"
#include "support/reference_model.h"
#include "support/tiny_config.h"

namespace farspan {
namespace {

using testing::EngineRun;
using testing::ReferenceModel;
using testing::ReferenceResult;
using testing::run_engine;

constexpr std::int64_t kWindow = 9, kLength = 48, kSequences = 2;
constexpr double kGradientTolerance = 2e-5;  // relative, of a parameter: f32 against double

// Sliding, full, sliding. Of a batch's documents some are longer than 12 tokens, some are not.
config::RunConfig mixed_config(const std::string& type, const std::string& layers) {
  config::RunConfig c = testing::tiny_config();
  auto& model = *c.mutable_model();
  model.set_num_hidden_layers(3);
  model.set_sliding_window(kWindow);
  for (const char* kind : {"sliding_attention", "full_attention", "sliding_attention"})
    model.add_layer_types(kind);
  auto& scaling = *model.mutable_rope()->mutable_scaling();
  scaling.set_type(type);
  scaling.set_layers(layers);
  scaling.set_factor(4);
  scaling.set_original_context(12);
  for (int j = 0; type == "longrope" && j < 4; ++j) {
    scaling.add_short_factor(1 + 0.5 * j);
    scaling.add_long_factor(2 + j);
  }
  c.mutable_train()->set_batch_tokens(kSequences * kLength);
  c.mutable_train()->set_steps(1);
  return c;
}

std::map<std::string, testing::reference::Values> initial_weights(const config::RunConfig& config) {
  const auto world = make_self_communicator();
  const auto backend = make_backend({});
  const Mesh mesh(*world, 1, 1);
  Trace trace;
  Engine engine(config, *backend, mesh, dry_run(config, 0, 1).sizes, trace);
  engine.initialize();
  std::map<std::string, testing::reference::Values> out;
  for (const Parameter& p : engine.parameters().parameters()) {
    const std::vector<float> values = testing::values_of(engine, p.master);
    out[p.name] = {values.begin(), values.end()};
  }
  return out;
}

// What mixed_config() means, said layer by layer.
ReferenceResult expected(const config::RunConfig& config) {
  const auto& rope = config.model().rope();
  const RotaryArgs unscaled{.theta = rope.theta(), .head_dim = config.model().head_dim()};
  RotaryArgs scaled = unscaled;
  scaled.scaling = rope.scaling();
  const RotaryArgs sliding = rope.scaling().layers() == "all" ? scaled : unscaled;
  ReferenceModel model{.shape = config.model(),
                       .layers = {{.window = kWindow, .rotary = sliding},
                                  {.rotary = scaled},
                                  {.window = kWindow, .rotary = sliding}},
                       .weights = initial_weights(config)};
  if (config.model().position() == "xpos")
    for (int j = 0; j < 4; ++j)  // (2j / d + 0.4) / 1.4
      model.decay.push_back(std::log2((0.25 * j + 0.4) / 1.4) / config.model().xpos_scale_base());
  return testing::run_reference(
      model, testing::random_batch(1000, kSequences, kLength, config.model().vocab_size(), 30));
}

void expect_equal(const EngineRun& run, const ReferenceResult& want) {
  const double loss = want.loss_sum / want.valid_tokens;
  EXPECT_EQ(run.steps[0].valid_tokens, want.valid_tokens);
  EXPECT_NEAR(run.steps[0].loss, loss, 1e-6 * loss);
  ASSERT_EQ(run.gradients.size(), want.gradients.size());
  for (const auto& [name, gradient] : run.gradients) {
    const auto& exact = want.gradients.at(name);
    EXPECT_LT(testing::relative_l2(gradient, {exact.begin(), exact.end()}), kGradientTolerance)
        << name;
  }
}

constexpr const char* kTypes[] = {"none", "linear", "ntk", "dynamic", "yarn", "llama3", "longrope"};

TEST(ScaledLayers, EqualTheReferenceOnOneAndTwoRanks) {
  for (const char* type : kTypes) {
    std::map<std::string, double> losses;
    for (const char* layers : {"all", "full_attention"}) {
      config::RunConfig config = mixed_config(type, layers);
      const ReferenceResult want = expected(config);
      for (const int ranks : {1, 2}) {
        SCOPED_TRACE(fmt::format("{} of {} on {} ranks", type, layers, ranks));
        config.mutable_parallel()->set_context(ranks);
        expect_equal(run_engine(config), want);
      }
      losses[layers] = want.loss_sum / want.valid_tokens;
    }
    // Far more than the tolerance: that the layers differ is seen.
    if (std::string_view(type) == "none") continue;
    EXPECT_GT(std::abs(losses["all"] - losses["full_attention"]), 2e-5) << type;
  }
}

TEST(ScaledLayers, EqualTheReferenceUnderXpos) {
  config::RunConfig config = mixed_config("yarn", "full_attention");
  config.mutable_model()->set_position("xpos");
  config.mutable_model()->set_xpos_scale_base(16);
  const ReferenceResult want = expected(config);
  for (const int ranks : {1, 2}) {
    config.mutable_parallel()->set_context(ranks);
    expect_equal(run_engine(config), want);
  }
}

TEST(ScaledLayers, EqualTheReferenceUnderEveryStrategy) {
  struct Case {
    const char* attention;
    int data, context, ulysses;
    const char* layout;
    bool invariant;
  };
  for (const char* type : {"yarn", "dynamic"}) {
    config::RunConfig config = mixed_config(type, "full_attention");
    const ReferenceResult want = expected(config);
    for (const Case c : {Case{"ring", 1, 3, 1, "striped", false},
                         {"ring", 2, 2, 1, "balanced", false},
                         {"allgather", 1, 4, 1, "contiguous", false},
                         {"allgather", 1, 2, 1, "zigzag", true},
                         {"ulysses", 1, 2, 2, "contiguous", false},
                         {"hybrid", 1, 4, 2, "zigzag", false}}) {
      SCOPED_TRACE(fmt::format("{} {} data {} context {} {}", type, c.attention, c.data, c.context,
                               c.layout));
      auto& parallel = *config.mutable_parallel();
      parallel.set_attention(c.attention);
      parallel.set_data(c.data);
      parallel.set_context(c.context);
      parallel.set_ulysses(c.ulysses);
      parallel.set_layout(c.layout);
      parallel.set_invariant(c.invariant);
      expect_equal(run_engine(config), want);
    }
  }
}

// What is recomputed is turned as it was.
TEST(ScaledLayers, AllPoliciesGiveBitwiseEqualWeights) {
  for (const char* type : {"yarn", "longrope"}) {
    config::RunConfig config = mixed_config(type, "full_attention");
    config.mutable_parallel()->set_context(2);
    config.mutable_train()->set_steps(2);
    const EngineRun none = run_engine(config);
    for (const char* policy : {"selective", "full", "full+attention", "offload"}) {
      SCOPED_TRACE(fmt::format("{} {}", type, policy));
      config.mutable_train()->set_recompute(policy);
      const EngineRun other = run_engine(config);
      EXPECT_EQ(other.gradients, none.gradients);
      EXPECT_EQ(other.weights, none.weights);
    }
  }
}

// Where all layers are full, or none is scaled, there is one table, and no memory for another.
TEST(ScaledLayers, ASecondTableOnlyWhereLayersDiffer) {
  const auto bytes = [](const char* type, const char* layers, bool slides) {
    config::RunConfig config = mixed_config(type, layers);
    if (!slides) {
      config.mutable_model()->clear_layer_types();
      config.mutable_model()->set_sliding_window(0);
    }
    return dry_run(config, 0, 1).sizes.activations;
  };
  EXPECT_GT(bytes("yarn", "full_attention", true), bytes("yarn", "all", true));
  EXPECT_EQ(bytes("yarn", "full_attention", false), bytes("yarn", "all", false));
  EXPECT_EQ(bytes("none", "full_attention", true), bytes("none", "all", true));
}

TEST(ScaledLayers, WhichTheyAre) {
  config::Model model = mixed_config("yarn", "full_attention").model();
  const auto scaled = [&] {
    std::vector<bool> out;
    for (std::int64_t layer = 0; layer < 3; ++layer) out.push_back(layer_is_scaled(model, layer));
    return out;
  };
  EXPECT_EQ(scaled(), (std::vector<bool>{false, true, false}));
  EXPECT_EQ(num_sliding_layers(model), 2);
  model.clear_layer_types();  // all layers alike
  EXPECT_EQ(scaled(), (std::vector<bool>{false, false, false}));
  model.set_sliding_window(0);
  EXPECT_EQ(scaled(), (std::vector<bool>{true, true, true}));
  EXPECT_EQ(num_sliding_layers(model), 0);
  model = mixed_config("yarn", "all").model();
  EXPECT_EQ(scaled(), (std::vector<bool>{true, true, true}));
  const RotaryTable plain = unscaled_rotary(model);
  ASSERT_EQ(plain.inv_freq.size(), 4u);
  EXPECT_EQ(plain.attention_scale, 1);
  for (std::size_t j = 0; j < 4; ++j)
    EXPECT_DOUBLE_EQ(plain.inv_freq[j], std::pow(10.0, -static_cast<double>(j)));
}

}  // namespace
}  // namespace farspan
