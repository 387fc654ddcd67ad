// The whole model: gradients against finite differences, and any sharding against one rank.
#include "model/transformer.h"

#include <gtest/gtest.h>

#include <cmath>

#include "support/engine_runs.h"
#include "support/tiny_config.h"

namespace farspan {
namespace {

using testing::EngineRun;
using testing::run_engine;
using testing::tiny_config;

// d loss / d w along random directions of each parameter, in f32 with central differences.
TEST(Transformer, GradientsMatchFiniteDifferences) {
  for (const bool tied : {true, false}) {
    config::RunConfig config = tiny_config();
    config.mutable_model()->set_tie_word_embeddings(tied);
    config.mutable_train()->set_batch_tokens(config.train().sequence_length());
    const auto world = make_self_communicator();
    const auto backend = make_backend({.kind = DeviceKind::kCpu});
    const Mesh mesh(*world, 1, 1);
    Trace trace;
    Engine engine(config, *backend, mesh, dry_run(config, 0, 1).sizes, trace);
    engine.initialize();
    const MicroBatch micro = shard(testing::random_batch(5, 1, config.train().sequence_length(),
                                                         config.model().vocab_size(), 30),
                                   Sharding::from(config, {}));
    engine.train_step({&micro, 1}, /*lr=*/0, {});
    const auto loss = [&] {
      engine.evaluate(micro);
      return engine.read_evaluation().loss_sum;
    };
    std::mt19937_64 rng(17);
    std::normal_distribution<double> normal;
    for (Parameter& p : engine.parameters().parameters()) {
      SCOPED_TRACE(p.name);
      const std::vector<float> saved(p.master.ptr<float>(), p.master.ptr<float>() + p.numel());
      std::vector<double> direction(saved.size());
      double norm = 0;
      for (double& d : direction) {
        d = normal(rng);
        norm += d * d;
      }
      double slope = 0;
      for (std::size_t i = 0; i < saved.size(); ++i) {
        direction[i] /= std::sqrt(norm);
        slope += direction[i] * double{p.grad.ptr<float>()[i]};
      }
      const auto at = [&](double epsilon) {
        for (std::size_t i = 0; i < saved.size(); ++i)
          p.master.ptr<float>()[i] = static_cast<float>(double{saved[i]} + epsilon * direction[i]);
        return loss();
      };
      // Richardson's extrapolation of two central differences.
      const double h = 4e-2;
      const double wide = (at(h) - at(-h)) / (2 * h), narrow = (at(h / 2) - at(-h / 2)) / h;
      std::copy(saved.begin(), saved.end(), p.master.ptr<float>());
      EXPECT_NEAR((4 * narrow - wide) / 3, slope, 2e-2 * std::abs(slope) + 2e-2);
    }
  }
}

struct ShardingCase {
  int data, context;
  const char* layout;
  std::int64_t micro_batch;
};

TEST(Transformer, AnyShardingEqualsOneRank) {
  config::RunConfig config = tiny_config();
  auto& train = *config.mutable_train();
  train.set_sequence_length(53);  // prime: nothing divides
  train.set_batch_tokens(4 * 53);
  train.set_steps(5);
  const EngineRun one = run_engine(config);
  for (const ShardingCase s : {ShardingCase{1, 2, "zigzag", 1},
                           {1, 3, "zigzag", 2},
                           {1, 4, "contiguous", 1},
                           {1, 8, "zigzag", 4},
                           {2, 1, "zigzag", 1},
                           {2, 2, "zigzag", 2},
                           {4, 1, "zigzag", 1},
                           {1, 1, "zigzag", 4},
                           {2, 3, "contiguous", 1}}) {
    SCOPED_TRACE(fmt::format("data {} context {} {} micro-batch {}", s.data, s.context, s.layout,
                             s.micro_batch));
    config.mutable_parallel()->set_data(s.data);
    config.mutable_parallel()->set_context(s.context);
    config.mutable_parallel()->set_layout(s.layout);
    train.set_micro_batch(s.micro_batch);
    const EngineRun many = run_engine(config);
    for (std::size_t i = 0; i < one.steps.size(); ++i) {
      EXPECT_NEAR(many.steps[i].loss, one.steps[i].loss, 1e-5 * one.steps[i].loss) << "step " << i;
      EXPECT_NEAR(many.steps[i].grad_norm, one.steps[i].grad_norm, 1e-4 * one.steps[i].grad_norm);
      EXPECT_EQ(many.steps[i].valid_tokens, one.steps[i].valid_tokens);
    }
  }
}

TEST(Transformer, GradientsOfEveryParameterEqualOneRank) {
  config::RunConfig config = tiny_config();
  config.mutable_train()->set_steps(1);
  const EngineRun one = run_engine(config);
  for (const int context : {2, 3, 4, 8}) {
    config.mutable_parallel()->set_context(context);
    const EngineRun many = run_engine(config);
    EXPECT_NEAR(many.steps[0].loss, one.steps[0].loss, 1e-6 * one.steps[0].loss);
    EXPECT_NEAR(many.steps[0].grad_norm, one.steps[0].grad_norm, 1e-5 * one.steps[0].grad_norm);
    for (const auto& [name, gradient] : one.gradients)
      EXPECT_LE(testing::relative_l2(many.gradients.at(name), gradient), 1e-4)
          << name << " on " << context << " ranks";
  }
}

TEST(Transformer, FewerTokensThanRanks) {
  config::RunConfig config = tiny_config();
  config.mutable_train()->set_sequence_length(3);
  config.mutable_train()->set_batch_tokens(6);
  config.mutable_train()->set_steps(2);
  const EngineRun one = run_engine(config, 3);
  config.mutable_parallel()->set_context(8);
  const EngineRun many = run_engine(config, 3);
  for (std::size_t i = 0; i < one.steps.size(); ++i)
    EXPECT_NEAR(many.steps[i].loss, one.steps[i].loss, 1e-5 * one.steps[i].loss);
}

TEST(Transformer, AnUntrainedModelGuessesUniformly) {
  config::RunConfig config = tiny_config("bf16");
  config.mutable_model()->set_initializer_range(0.02);
  config.mutable_train()->set_steps(1);
  const double first = run_engine(config).steps[0].loss;
  EXPECT_NEAR(first, std::log(40.0), 0.1);
}

// The dry pass is the trainer itself: what it counts is what the run uses.
TEST(Engine, UsesExactlyTheMemoryOfTheDryPass) {
  for (const int context : {1, 3}) {
    config::RunConfig config = tiny_config("bf16");
    config.mutable_parallel()->set_context(context);
    run_local_ranks(context, [&](Communicator& world) {
      const auto backend = make_backend({.kind = DeviceKind::kCpu});
      const Mesh mesh(world, 1, context);
      Trace trace;
      const DryRunReport report = dry_run(config, world.rank(), world.size());
      Engine engine(config, *backend, mesh, report.sizes, trace);
      engine.initialize();
      const std::vector<MicroBatch> micro(2,
                                          shard(blank_batch(1, config.train().sequence_length()),
                                                Sharding::from(config, mesh.place())));
      engine.train_step(micro, 1e-3, {});
      engine.evaluate(micro[0]);
      const auto arenas = engine.arenas();
      for (std::size_t i = 0; i < arenas.size(); ++i)
        EXPECT_EQ(arenas[i]->high_water(), report.arenas[i].bytes) << arenas[i]->name();
    });
  }
}

}  // namespace
}  // namespace farspan
