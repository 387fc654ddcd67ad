// The whole model: gradients against finite differences, and any sharding against one rank.
#include "model/transformer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "parallel/attention_cost.h"
#include "support/engine_runs.h"
#include "support/tiny_config.h"
#include "train/memory.h"

namespace farspan {
namespace {

using testing::EngineRun;
using testing::run_engine;
using testing::tiny_config;

// d loss / d w along random directions of each parameter, in f32 with central differences.
void expect_gradients_match_differences(config::RunConfig config) {
  config.mutable_train()->set_batch_tokens(config.train().sequence_length());
  const auto world = make_self_communicator();
  const auto backend = make_backend({.kind = DeviceKind::kCpu});
  const Mesh mesh(*world, 1, 1);
  Trace trace;
  const ArenaSizes sizes = dry_run(config, 0, 1).sizes;
  Engine engine(config, *backend, mesh, sizes, trace);
  engine.initialize();
  const MicroBatch micro = shard(testing::random_batch(5, 1, config.train().sequence_length(),
                                                       config.model().vocab_size(), 30),
                                 Sharding::from(config, {}));
  engine.reserve(MemoryProbe(config, 0, 1, sizes).train(micro));
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

struct GradientCase {
  const char* name;
  void (*change)(config::Model&);
};

class Gradients : public ::testing::TestWithParam<GradientCase> {};

TEST_P(Gradients, MatchFiniteDifferences) {
  config::RunConfig config = tiny_config();
  GetParam().change(*config.mutable_model());
  expect_gradients_match_differences(config);
}

void slide(config::Model& m, std::int64_t sinks) {
  m.set_sliding_window(9);
  m.set_attention_sinks(sinks);
}

void dilate(config::Model& m) {
  auto& sparse = *m.mutable_sparse_attention();
  sparse.set_type("dilated");
  for (const std::int64_t length : {8, 24}) sparse.add_segment_lengths(length);
  for (const std::int64_t dilation : {1, 3}) sparse.add_dilations(dilation);
}

void shift_groups(config::Model& m) {
  m.mutable_sparse_attention()->set_type("s2");
  m.mutable_sparse_attention()->set_group_size(10);
}

void use_xpos(config::Model& m) {
  m.set_position("xpos");
  m.set_xpos_scale_base(16);  // decays that matter within 30 tokens
}

// Some documents of a batch are longer than 12 tokens, some are not.
void scale_by_length(config::Model& m, const char* type) {
  auto& scaling = *m.mutable_rope()->mutable_scaling();
  scaling.set_type(type);
  scaling.set_factor(4);
  scaling.set_original_context(12);
  if (scaling.type() != "longrope") return;
  for (int j = 0; j < 4; ++j) {
    scaling.add_short_factor(1 + 0.5 * j);
    scaling.add_long_factor(2 + j);
  }
}

void learn_positions(config::Model& m) {
  m.set_position("learned");
  m.set_max_position_embeddings(48);
}

// OLMo 3's: what is scaled are the layers without a window.
void scale_full_layers(config::Model& m, const char* type) {
  slide(m, 0);
  m.add_layer_types("sliding_attention");
  m.add_layer_types("full_attention");
  scale_by_length(m, type);
  m.mutable_rope()->mutable_scaling()->set_layers("full_attention");
}

const GradientCase kGradientCases[] = {
    {"tied", [](config::Model&) {}},
    {"untied", [](config::Model& m) { m.set_tie_word_embeddings(false); }},
    {"alibi", [](config::Model& m) { m.set_position("alibi"); }},
    {"xpos", use_xpos},
    {"no_positions", [](config::Model& m) { m.set_position("none"); }},
    {"window", [](config::Model& m) { slide(m, 0); }},
    {"sinks", [](config::Model& m) { slide(m, 2); }},
    {"alibi_with_sinks",
     [](config::Model& m) {
       m.set_position("alibi");
       slide(m, 2);
     }},
    {"xpos_with_window",
     [](config::Model& m) {
       use_xpos(m);
       slide(m, 0);
     }},
    {"mixed_layers",
     [](config::Model& m) {
       slide(m, 0);
       m.add_layer_types("full_attention");
       m.add_layer_types("sliding_attention");
     }},
    {"dilated", dilate},
    {"alibi_with_dilated",
     [](config::Model& m) {
       m.set_position("alibi");
       dilate(m);
     }},
    {"bigbird",
     [](config::Model& m) {
       m.mutable_sparse_attention()->set_type("bigbird");
       m.mutable_sparse_attention()->set_block_size(4);
     }},
    {"shifted_groups", shift_groups},
    {"learned", learn_positions},
    {"sinusoidal", [](config::Model& m) { m.set_position("sinusoidal"); }},
    {"dynamic", [](config::Model& m) { scale_by_length(m, "dynamic"); }},
    {"longrope", [](config::Model& m) { scale_by_length(m, "longrope"); }},
    {"yarn_on_full_layers", [](config::Model& m) { scale_full_layers(m, "yarn"); }},
    {"longrope_on_full_layers", [](config::Model& m) { scale_full_layers(m, "longrope"); }},
    {"xpos_with_shifted_groups",
     [](config::Model& m) {
       use_xpos(m);
       shift_groups(m);
     }},
};

INSTANTIATE_TEST_SUITE_P(All, Gradients, ::testing::ValuesIn(kGradientCases),
                         [](const auto& tested) { return std::string(tested.param.name); });

// A bias and a mask must reach the loss at all.
TEST(Transformer, EveryMaskAndBiasChangesTheLoss) {
  std::map<double, std::string> losses;
  for (const GradientCase& c : kGradientCases) {
    config::RunConfig config = tiny_config();
    c.change(*config.mutable_model());
    config.mutable_train()->set_steps(1);
    const double loss = run_engine(config, 0).steps[0].loss;
    const auto [at, fresh] = losses.emplace(loss, c.name);
    EXPECT_TRUE(fresh) << c.name << " and " << at->second << ": " << loss;
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

// The documents' lengths are those before sharding.
TEST(Transformer, TablesByLengthEqualOneRank) {
  for (const std::string type : {"dynamic", "longrope", "learned", "sinusoidal"}) {
    config::RunConfig config = tiny_config();
    config.mutable_train()->set_batch_tokens(2 * 48);
    if (type == "learned")
      learn_positions(*config.mutable_model());
    else if (type == "sinusoidal")
      config.mutable_model()->set_position(type);
    else
      scale_by_length(*config.mutable_model(), type.c_str());
    const EngineRun one = run_engine(config);
    for (const ShardingCase s : {ShardingCase{1, 2, "zigzag", 1},
                                 {1, 4, "contiguous", 2},
                                 {2, 2, "zigzag", 1},
                                 {1, 3, "balanced", 1}}) {
      SCOPED_TRACE(fmt::format("{} data {} context {} {}", type, s.data, s.context, s.layout));
      config.mutable_parallel()->set_data(s.data);
      config.mutable_parallel()->set_context(s.context);
      config.mutable_parallel()->set_layout(s.layout);
      config.mutable_train()->set_micro_batch(s.micro_batch);
      const EngineRun many = run_engine(config);
      for (std::size_t i = 0; i < one.steps.size(); ++i)
        EXPECT_NEAR(many.steps[i].loss, one.steps[i].loss, 1e-5 * one.steps[i].loss) << i;
      for (const auto& [name, gradient] : one.gradients)
        EXPECT_LT(testing::relative_l2(many.gradients.at(name), gradient), 1e-4) << name;
    }
  }
}

// A document's length is its largest position + 1, jumps included, of the whole document; which
// rank holds its last token does not matter.
TEST(Transformer, TokensReadTheTableOfTheirDocument) {
  config::RunConfig config = tiny_config();
  scale_by_length(*config.mutable_model(), "longrope");
  Batch batch = blank_batch(1, 48);
  for (std::size_t t = 0; t < 48; ++t) {
    batch.tokens[t] = static_cast<std::int32_t>(t);  // its index
    batch.segments[t] = t < 10 ? 0 : t < 20 ? 1 : 2;
    batch.positions[t] = static_cast<std::int32_t>(t < 10 ? t : t < 20 ? t - 10 : t - 20);
  }
  batch.positions[19] = 500;  // a jump at the end of the second
  for (int rank = 0; rank < 4; ++rank) {
    const MicroBatch mine =
        shard(batch, Sharding::from(config, {.ring_rank = rank, .ring_size = 4}));
    ASSERT_EQ(mine.num_tables, 2);
    ASSERT_EQ(mine.table_ids.size(), mine.tokens.size());
    for (std::size_t i = 0; i < mine.tokens.size(); ++i)
      EXPECT_EQ(mine.table_ids[i], mine.tokens[i] < 10 ? 0 : 1) << "token " << mine.tokens[i];
  }
}

// Read beyond its end, a table would give what happens to lie there.
TEST(Transformer, PositionsBeyondTheTableAreRefused) {
  config::RunConfig config = tiny_config();
  learn_positions(*config.mutable_model());
  Batch batch = testing::random_batch(5, 1, 48, 40, 30);
  EXPECT_NO_THROW(shard(batch, Sharding::from(config, {})));
  batch.positions[20] = 48;
  try {
    shard(batch, Sharding::from(config, {}));
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kBadData);
    EXPECT_NE(std::string(e.what()).find("position 48"), std::string::npos) << e.what();
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
  for (const char* strategy : {"ring", "allgather", "ulysses"})
    for (const int context : {1, 2, 4}) {
      SCOPED_TRACE(fmt::format("{} on {} ranks", strategy, context));
      config::RunConfig config = tiny_config("bf16");
      config.mutable_parallel()->set_context(context);
      config.mutable_parallel()->set_attention(strategy);
      if (std::string_view(strategy) == "ulysses") config.mutable_parallel()->set_ulysses(context);
      run_local_ranks(context, [&](Communicator& world) {
        const auto backend = make_backend({.kind = DeviceKind::kCpu});
        const Mesh mesh = make_mesh(config, world);
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

// Documents, masks and layouts make batches of one run differ; each says beforehand what it needs.
TEST(Engine, ABatchUsesExactlyTheMemoryThatItSaysItNeeds) {
  for (const char* strategy : {"ring", "allgather", "hybrid"})
    for (const char* layout : {"zigzag", "striped", "balanced"})
      for (const GradientCase& c : kGradientCases) {
        SCOPED_TRACE(fmt::format("{} {} {}", strategy, layout, c.name));
        config::RunConfig config = tiny_config();
        c.change(*config.mutable_model());
        config.mutable_parallel()->set_context(4);
        config.mutable_parallel()->set_attention(strategy);
        config.mutable_parallel()->set_layout(layout);
        if (std::string_view(strategy) == "hybrid") config.mutable_parallel()->set_ulysses(2);
        run_local_ranks(4, [&](Communicator& world) {
          const auto backend = make_backend({.kind = DeviceKind::kCpu});
          const Mesh mesh = make_mesh(config, world);
          Trace trace;
          const ArenaSizes sizes = dry_run(config, world.rank(), world.size()).sizes;
          for (const std::uint64_t seed : {1, 2, 3}) {
            const MicroBatch micro = shard(testing::random_batch(seed, 1, 48, 40, 30),
                                           Sharding::from(config, mesh.place()));
            const PassMemory need =
                MemoryProbe(config, world.rank(), world.size(), sizes).train(micro);
            ArenaSizes small = sizes;
            small.activations = small.scratch = small.batch = 1;
            Engine engine(config, *backend, mesh, small, trace);
            engine.initialize();
            EXPECT_TRUE(engine.reserve(need));
            EXPECT_FALSE(engine.reserve(need)) << "there is room now";
            engine.train_step({&micro, 1}, 1e-3, {});
            EXPECT_EQ(engine.pass_memory().activations, need.activations);
            EXPECT_EQ(engine.pass_memory().scratch, need.scratch);
            EXPECT_EQ(engine.pass_memory().batch, need.batch);
          }
        });
      }
}

// Shares follow the documents; the dry run, which knows none, has made room for them.
TEST(Engine, UnevenSharesFitTheDryRun) {
  config::RunConfig config = tiny_config();
  config.mutable_train()->set_sequence_length(2048);
  config.mutable_train()->set_batch_tokens(2048);
  config.mutable_parallel()->set_context(4);
  config.mutable_parallel()->set_layout("balanced");
  for (const int rank : {0, 1, 2, 3}) {
    const ArenaSizes sizes = dry_run(config, rank, 4).sizes;
    const Sharding sharding = Sharding::from(config, {.ring_rank = rank, .ring_size = 4});
    MemoryProbe probe(config, rank, 4, sizes);
    for (std::uint64_t seed = 1; seed <= 20; ++seed) {
      SCOPED_TRACE(fmt::format("rank {} seed {}", rank, seed));
      const std::int64_t longest = seed % 2 == 0 ? 60 : 700;
      const MicroBatch micro = shard(testing::random_batch(seed, 1, 2048, 40, longest), sharding);
      const PassMemory need = probe.train(micro);
      EXPECT_LE(need.activations, sizes.activations) << micro.tokens.size() << " tokens";
      EXPECT_LE(need.scratch, sizes.scratch);
      EXPECT_LE(need.batch, sizes.batch);
    }
  }
}

// Documents take rows and transfers away: one document per sequence, as the dry run has it, is the
// most that batches need, however scattered what ranks ask of each other becomes.
TEST(Engine, PackedDocumentsFitTheDryRun) {
  for (const char* strategy : {"ring", "allgather", "hybrid"})
    for (const char* layout : {"contiguous", "zigzag", "striped"})
      for (const std::int64_t window : {0, 16, 100})
        for (const int rank : {0, 1, 2, 3}) {
          config::RunConfig config = tiny_config();
          config.mutable_model()->set_sliding_window(window);
          config.mutable_train()->set_sequence_length(512);
          config.mutable_train()->set_batch_tokens(512);
          config.mutable_train()->set_recompute("full+attention");
          config.mutable_parallel()->set_context(4);
          config.mutable_parallel()->set_attention(strategy);
          config.mutable_parallel()->set_layout(layout);
          if (std::string_view(strategy) == "hybrid") config.mutable_parallel()->set_ulysses(2);
          const ArenaSizes sizes = dry_run(config, rank, 4).sizes;
          const auto world = make_dry_communicator(rank, 4);
          const Sharding sharding = Sharding::from(config, make_mesh(config, *world).place());
          MemoryProbe probe(config, rank, 4, sizes);
          for (const std::int64_t longest : {5, 60, 400}) {
            SCOPED_TRACE(fmt::format("{} {} window {} rank {} documents up to {}", strategy, layout,
                                     window, rank, longest));
            const auto seed = static_cast<std::uint64_t>(longest);
            const MicroBatch micro =
                shard(testing::random_batch(seed, 1, 512, 40, longest), sharding);
            const PassMemory need = probe.train(micro);
            EXPECT_LE(need.activations, sizes.activations);
            EXPECT_LE(need.scratch, sizes.scratch);
          }
        }
}

// What the cost model weighs is what training does.
TEST(Sharder, CutsAsTheCostModelAssumes) {
  for (const char* layout : {"contiguous", "zigzag", "striped", "balanced"})
    for (const GradientCase& c : kGradientCases) {
      SCOPED_TRACE(fmt::format("{} {}", layout, c.name));
      config::RunConfig config = tiny_config();
      c.change(*config.mutable_model());
      config.mutable_parallel()->set_layout(layout);
      config.mutable_parallel()->set_attention("hybrid");
      config.mutable_parallel()->set_ulysses(2);
      config.mutable_parallel()->set_context(6);
      const Batch batch = testing::random_batch(3, 2, 48, 40, 20);
      const SequenceLayout cut = make_layout(
          batch, Sharding::from(config, {.ring_size = 3, .ulysses_rank = 1, .ulysses_size = 2}));
      const SequenceLayout assumed = attention_layout(
          attention_case(config, document_lengths(batch.segments), batch.sequences));
      ASSERT_EQ(cut.num_ranks(), assumed.num_ranks());
      for (int place = 0; place < cut.num_ranks(); ++place)
        EXPECT_EQ(cut.ranges(place), assumed.ranges(place));
    }
}

// Same documents, same plans: nothing is made anew; other tokens are cut all the same.
TEST(Sharder, ReusesThePlansOfEqualDocuments) {
  config::RunConfig config = tiny_config();
  for (const char* position : {"rope", "alibi"}) {
    config.mutable_model()->set_position(position);
    const Sharding sharding =
        Sharding::from(config, {.ring_rank = 1, .ring_size = 3, .ulysses_rank = 0});
    Sharder sharder(sharding);
    const Batch first = testing::random_batch(1, 2, 48, 40, 20);
    Batch second = testing::random_batch(1, 2, 48, 40, 20);
    for (std::int32_t& token : second.tokens) token = 39 - token;
    for (std::int32_t& segment : second.segments) segment += 7;
    sharder(first);
    EXPECT_FALSE(sharder.reused());
    const MicroBatch cut = sharder(second);
    EXPECT_TRUE(sharder.reused());
    const MicroBatch fresh = shard(second, sharding);
    EXPECT_EQ(cut.tokens, fresh.tokens);
    EXPECT_EQ(cut.labels, fresh.labels);
    EXPECT_EQ(cut.positions, fresh.positions);
    EXPECT_EQ(cut.visible_pairs, fresh.visible_pairs);
    ASSERT_EQ(cut.plans.size(), fresh.plans.size());
    EXPECT_EQ(cut.plans[0].hops.at(1).slices, fresh.plans[0].hops.at(1).slices);
    // Positions matter to a bias only.
    for (std::int32_t& p : second.positions) p += 5;
    sharder(second);
    EXPECT_EQ(sharder.reused(), std::string_view(position) == "rope");
    sharder(testing::random_batch(2, 2, 48, 40, 20));
    EXPECT_FALSE(sharder.reused());
  }
}

// Stored positions that begin again inside a document are bad data under xPos, not a bug.
TEST(Sharder, RefusesPositionsThatXposCannotWeigh) {
  config::RunConfig config = tiny_config();
  const Batch good = blank_batch(2, 8);
  Batch bad = good;
  bad.positions[5] = 0;
  for (const char* position : {"rope", "alibi", "xpos"}) {
    config.mutable_model()->set_position(position);
    const Sharding sharding = Sharding::from(config, {});
    shard(good, sharding);
    if (std::string_view(position) != "xpos") {
      shard(bad, sharding);
      continue;
    }
    try {
      shard(bad, sharding);
      FAIL() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kBadData);
      EXPECT_NE(std::string_view(error.what()).find("from 4 to 0"), std::string_view::npos)
          << error.what();
    }
  }
}

// Arenas that grow for a batch are held to the limit that the dry run was held to.
TEST(Engine, GrowthStaysWithinDeviceMemory) {
  config::RunConfig config = tiny_config();
  const auto world = make_self_communicator();
  const auto backend = make_backend({.kind = DeviceKind::kCpu});
  const Mesh mesh(*world, 1, 1);
  Trace trace;
  const ArenaSizes sizes = dry_run(config, 0, 1).sizes;
  const Engine engine(config, *backend, mesh, sizes, trace);
  EXPECT_EQ(engine.device_bytes_with({}), sizes.on_device());
  const std::size_t grown =
      engine.device_bytes_with({.activations = 0, .scratch = sizes.scratch + 1000, .batch = 0});
  EXPECT_EQ(grown, sizes.on_device() + 1000);

  EXPECT_NO_THROW(check_growth(grown, config));  // no limit given
  config.set_device_memory(static_cast<std::int64_t>(grown));
  EXPECT_NO_THROW(check_growth(grown, config));
  try {
    check_growth(grown + 1, config);
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kDoesNotFit);
  }
}

}  // namespace
}  // namespace farspan
