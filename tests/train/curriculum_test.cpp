// Stages of a curriculum: no token is lost or repeated where one ends, and an engine that goes on
// in another stage does what one made for that stage would do.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>

#include "data/token_store.h"
#include "support/engine_runs.h"
#include "support/tiny_config.h"
#include "train/auto_sharding.h"
#include "train/temporary_folder.h"
#include "train/training_data.h"

namespace farspan::testing {
namespace {

constexpr std::int64_t kBatch = 384, kSteps = 10;

// Token i of the store is first + i, in documents of various lengths.
void write_numbered(const std::filesystem::path& path, std::int32_t first, std::int64_t tokens) {
  TokenStoreWriter writer(path,
                          {.tokenizer = {.name = "none", .vocab_size = 10000, .eos = 1, .pad = 2}});
  for (std::int64_t at = 0, length = 1; at < tokens; at += length, length = length * 7 % 101 + 3) {
    length = std::min(length, tokens - at);
    TokenStoreWriter::Document document;
    for (std::int64_t i = 0; i < length; ++i)
      document.tokens.push_back(first + static_cast<std::int32_t>(at + i));
    writer.append(document.piece());
    writer.end_document();
  }
  writer.finish();
}

config::Stage& add_stage(config::RunConfig& c, std::int64_t length, std::int64_t steps, int data,
                         int context) {
  config::Stage& stage = *c.mutable_curriculum()->add_stages();
  stage.set_sequence_length(length);
  stage.set_steps(steps);
  stage.set_micro_batch(1);
  stage.mutable_parallel()->set_data(data);
  stage.mutable_parallel()->set_context(context);
  stage.mutable_parallel()->set_ulysses(1);
  return stage;
}

// Four stages; with two ranks the second and the last share sequences.
config::RunConfig staged_config(const std::filesystem::path& store, int ranks) {
  config::RunConfig c = tiny_config();
  c.mutable_model()->set_vocab_size(10000);
  c.mutable_data()->add_train()->set_path(store.string());
  c.mutable_train()->set_batch_tokens(kBatch);
  c.mutable_train()->set_steps(kSteps);
  c.mutable_evaluation()->set_every(0);
  c.mutable_curriculum()->set_type("growlength");
  add_stage(c, 24, 3, ranks, 1);
  add_stage(c, 64, 2, 1, ranks);
  add_stage(c, 96, 3, ranks, 1);
  add_stage(c, 192, 2, 1, ranks);
  return c;
}

// How often each token is trained on, over all ranks and steps.
std::map<std::int32_t, int> count_tokens(const config::RunConfig& config, int ranks) {
  std::map<std::int32_t, int> counts;
  std::mutex mutex;
  run_local_ranks(ranks, [&](Communicator& world) {
    const std::vector<StagePlan> stages = plan_stages(config);
    TrainingData data(config, stages);
    std::vector<std::unique_ptr<Mesh>> meshes;
    std::vector<const Mesh*> of_stage;
    for (const StagePlan& stage : stages) {
      meshes.push_back(std::make_unique<Mesh>(make_mesh(stage.config, world)));
      of_stage.push_back(meshes.back().get());
    }
    data.cut_for(stages, of_stage, dry_run(stages, world.rank(), ranks).whole.sizes);
    data.start(0);
    for (std::int64_t step = 0; step < kSteps; ++step)
      for (const MicroBatch& micro : data.next()) {
        const std::lock_guard lock(mutex);
        for (const std::int32_t token : micro.tokens) ++counts[token];
      }
  });
  return counts;
}

TEST(CurriculumData, EveryTokenOfAnEpochOnceOverThreeSwitches) {
  const TemporaryFolder folder;
  write_numbered(folder / "a.h5", 0, kBatch * kSteps);
  for (const int ranks : {1, 2}) {
    const auto counts = count_tokens(staged_config(folder / "a.h5", ranks), ranks);
    EXPECT_EQ(counts.size(), static_cast<std::size_t>(kBatch * kSteps)) << ranks << " ranks";
    for (const auto& [token, count] : counts) ASSERT_EQ(count, 1) << "token " << token;
  }
}

// A stage without a source leaves it where it was.
TEST(CurriculumData, MixturesChangeAndLoseNothing) {
  const TemporaryFolder folder;
  write_numbered(folder / "a.h5", 0, 5000);
  write_numbered(folder / "b.h5", 5000, 5000);
  config::RunConfig c = staged_config(folder / "a.h5", 2);
  for (const char* name : {"a.h5", "b.h5"}) {
    auto& source = *c.mutable_curriculum()->mutable_stages(2)->add_train();
    source.set_path((folder / name).string());
    source.set_weight(name[0] == 'a' ? 2 : 1);
  }
  c.mutable_curriculum()->mutable_stages(3)->add_train()->set_path((folder / "b.h5").string());
  std::int64_t of_a = 0, of_b = 0;
  for (const auto& [token, count] : count_tokens(c, 2)) {
    ASSERT_EQ(count, 1) << "token " << token;
    ++(token < 5000 ? of_a : of_b);
  }
  // The third stage's twelve samples come from both, in an order shuffled over more than twelve.
  EXPECT_EQ(of_a + of_b, kBatch * kSteps);
  EXPECT_GE(of_a, kBatch * 5 + 96);
  EXPECT_GE(of_b, kBatch * 2 + 96);
}

// However a stage spells a store, it goes on where the one before ended.
TEST(CurriculumData, TwoSpellingsAreOneSource) {
  const TemporaryFolder folder;
  write_numbered(folder / "a.h5", 0, kBatch * kSteps);
  std::filesystem::create_symlink(folder / "a.h5", folder / "link.h5");
  std::filesystem::create_symlink(folder / "a.h5.manifest.json", folder / "link.h5.manifest.json");
  config::RunConfig c = staged_config(folder / "a.h5", 1);
  const auto spell = [&](int stage, const std::filesystem::path& path) {
    c.mutable_curriculum()->mutable_stages(stage)->add_train()->set_path(path.string());
  };
  spell(1, folder / "." / "a.h5");
  spell(2, std::filesystem::relative(folder / "a.h5"));
  spell(3, folder / "link.h5");
  EXPECT_EQ(training_stores(plan_stages(c)).size(), 1U);
  const auto counts = count_tokens(c, 1);
  EXPECT_EQ(counts.size(), static_cast<std::size_t>(kBatch * kSteps));
  for (const auto& [token, count] : counts) ASSERT_EQ(count, 1) << "token " << token;
  // Named twice in one stage it stays two sources, spelled alike or not.
  spell(1, folder / "a.h5");
  EXPECT_EQ(training_stores(plan_stages(c)).size(), 2U);
}

// What stages still to come read is in no checkpoint, and changes nothing for those before.
TEST(CurriculumData, FingerprintsOfStagesThatHaveBegun) {
  const TemporaryFolder folder;
  const char* const names[] = {"a.h5", "b.h5", "c.h5"};
  for (int i = 0; i < 3; ++i) write_numbered(folder / names[i], 3000 * i, 3000 - i);
  const auto staged = [&](const char* third) {
    config::RunConfig c = staged_config(folder / "a.h5", 1);
    auto& stage = *c.mutable_curriculum()->mutable_stages(2);
    for (const char* name : {"a.h5", third}) stage.add_train()->set_path((folder / name).string());
    return c;
  };
  const config::RunConfig with_b = staged("b.h5"), with_c = staged("c.h5");
  const config::RunConfig alone = staged_config(folder / "a.h5", 1);
  const TrainingData b(with_b, plan_stages(with_b)), c(with_c, plan_stages(with_c)),
      a(alone, plan_stages(alone));
  for (const std::size_t trained : {1, 2}) {
    EXPECT_EQ(b.fingerprint(trained), c.fingerprint(trained));
    EXPECT_EQ(b.fingerprint(trained), a.fingerprint(4));
  }
  EXPECT_NE(b.fingerprint(3), c.fingerprint(3));
  EXPECT_EQ(b.fingerprint(3), b.fingerprint(4));
  EXPECT_NE(b.fingerprint(3), a.fingerprint(3));
  // Without stages: of all stores, as ever.
  config::RunConfig single = staged_config(folder / "a.h5", 1);
  single.mutable_data()->add_train()->set_path((folder / "b.h5").string());
  single.clear_curriculum();
  EXPECT_EQ(TrainingData(single, plan_stages(single)).fingerprint(1),
            open_training_data(single, TokenStore::Verify::kSize).fingerprint());
}

TEST(CurriculumData, CursorsFollowTheStages) {
  const TemporaryFolder folder;
  write_numbered(folder / "a.h5", 0, kBatch * kSteps);
  const config::RunConfig c = staged_config(folder / "a.h5", 1);
  const TrainingData data(c, plan_stages(c));
  EXPECT_EQ(data.samples_of(0).begin, 0);
  EXPECT_EQ(data.samples_of(3).begin, 3 * 16);
  EXPECT_EQ(data.samples_of(5).begin, 3 * 16 + 2 * 6);
  EXPECT_EQ(data.samples_of(kSteps).begin, 3 * 16 + 2 * 6 + 3 * 4 + 2 * 2);
  EXPECT_EQ(data.stage_start(2).first_sample, 60);
  EXPECT_EQ(data.stage_start(2).source_tokens[0], 5 * kBatch);
}

// What was chosen is written where all stages of a place chose alike; else it stays auto.
TEST(CurriculumDryRun, WorkIsThatOfTheWindow) {
  config::RunConfig config = tiny_config();
  config.mutable_train()->set_steps(100);
  config.mutable_train()->set_sequence_length(96);
  config.mutable_train()->set_batch_tokens(96);
  config.mutable_train()->set_micro_batch(1);
  config.mutable_curriculum()->set_type("window");
  config.mutable_curriculum()->set_initial_window(24);
  config.mutable_curriculum()->set_window_steps(60);
  const std::vector<StagePlan> stages = plan_stages(config);
  const StagesDryRun run = dry_run(stages, 0, 1);
  EXPECT_EQ(run.stages, (std::vector<std::size_t>{0, stages.size() - 1}));
  const WorkCounters &cut = run.reports[0].step_work, &whole = run.reports[1].step_work;
  EXPECT_EQ(cut.matmul_flops, whole.matmul_flops);
  // Pairs of four blocks of 24 tokens, and of one of 96.
  EXPECT_NEAR(cut.attention_forward_flops / whole.attention_forward_flops,
              (4 * 24 * 25) / (96.0 * 97), 1e-12);
  EXPECT_EQ(run.reports[0].total_bytes(), run.reports[1].total_bytes()) << "memory is that of all";
  EXPECT_EQ(run.whole.step_flops(), run.reports[1].step_flops());
}

TEST(CurriculumSharding, ChoicesAreRecordedWherePlacesAgree) {
  config::RunConfig window = tiny_config();
  window.mutable_train()->set_steps(100);
  window.mutable_train()->set_sequence_length(96);
  window.mutable_curriculum()->set_type("window");
  window.mutable_curriculum()->set_window_steps(60);
  config::RunConfig cyclic = staged_config("a.h5", 1);
  cyclic.mutable_curriculum()->set_type("cyclic");
  cyclic.mutable_curriculum()->set_cycles(2);
  for (auto& stage : *cyclic.mutable_curriculum()->mutable_stages())
    stage.mutable_parallel()->set_layout("auto");
  window.mutable_parallel()->set_layout("auto");
  const auto recorded = [](config::RunConfig config, std::size_t other) {
    std::vector<StagePlan> stages = plan_stages(config);
    for (std::size_t i = 0; i < stages.size(); ++i)
      stages[i].config.mutable_parallel()->set_layout(i == other ? "striped" : "zigzag");
    record_sharding(config, stages);
    return config;
  };
  constexpr std::size_t kNone = 1000;
  EXPECT_EQ(recorded(window, kNone).parallel().layout(), "zigzag");
  EXPECT_EQ(recorded(window, 3).parallel().layout(), "auto");
  const auto layouts = [&](std::size_t other) {
    std::vector<std::string> out;
    const config::RunConfig config = recorded(cyclic, other);
    for (const config::Stage& stage : config.curriculum().stages())
      out.push_back(stage.parallel().layout());
    return out;
  };
  EXPECT_EQ(layouts(kNone), (std::vector<std::string>(4, "zigzag")));
  EXPECT_EQ(layouts(5), (std::vector<std::string>{"zigzag", "auto", "zigzag", "zigzag"}));
  // A layout that was given is left alone.
  window.mutable_parallel()->set_layout("contiguous");
  EXPECT_EQ(recorded(window, kNone).parallel().layout(), "contiguous");
}

void copy(Engine& from, Engine& to) {
  auto target = to.parameters().parameters().begin();
  for (Parameter& p : from.parameters().parameters()) {
    for (const auto part : {&Parameter::master, &Parameter::m, &Parameter::v})
      std::memcpy(((*target).*part).data, (p.*part).data, (p.*part).bytes());
    ++target;
  }
  to.parameters().refresh_working(to.backend());
}

config::RunConfig stage_config(std::int64_t length, int data, int context) {
  config::RunConfig c = tiny_config("bf16");
  c.mutable_train()->set_sequence_length(length);
  c.mutable_train()->set_batch_tokens(2 * 96);
  c.mutable_train()->set_micro_batch(1);
  c.mutable_parallel()->set_data(data);
  c.mutable_parallel()->set_context(context);
  return c;
}

void one_step(Engine& engine, const config::RunConfig& c, const Mesh& mesh, std::uint64_t seed) {
  const std::int64_t rows = 2 * 96 / c.train().sequence_length() / c.parallel().data();
  const Batch batch = random_batch(seed + static_cast<std::uint64_t>(mesh.data_rank()), rows,
                                   c.train().sequence_length(), 40, 30);
  const MicroBatch micro = shard(batch, Sharding::from(c, mesh.place()));
  engine.reserve(MemoryProbe(c, mesh.world().rank(), mesh.world().size(),
                             dry_run(c, mesh.world().rank(), mesh.world().size()).sizes)
                     .train(micro));
  engine.train_step({&micro, 1}, 1e-2, {});
}

// From data ranks to context ranks, with another strategy, window and rotary scaling.
TEST(CurriculumEngine, GoesOnAsOneMadeForTheStage) {
  run_local_ranks(2, [](Communicator& world) {
    const config::RunConfig first = stage_config(48, 2, 1);
    config::RunConfig second = stage_config(96, 1, 2);
    second.mutable_parallel()->set_attention("allgather");
    second.mutable_model()->set_sliding_window(40);
    second.mutable_model()->mutable_rope()->set_theta(5e5);
    second.mutable_model()->add_layer_types("sliding_attention");
    second.mutable_model()->add_layer_types("full_attention");
    auto& scaling = *second.mutable_model()->mutable_rope()->mutable_scaling();
    scaling.set_type("yarn");
    scaling.set_original_context(48);
    scaling.set_factor(2);
    scaling.set_layers("full_attention");
    const auto backend = make_backend({});
    const Mesh data_mesh = make_mesh(first, world), context_mesh = make_mesh(second, world);
    Trace trace;
    const StagePlan stages[] = {{.config = first}, {.config = second}};
    const ArenaSizes sizes =
        dry_run(std::vector<StagePlan>(stages, stages + 2), world.rank(), 2).whole.sizes;
    Engine engine(first, *backend, data_mesh, sizes, trace);
    engine.initialize();
    one_step(engine, first, data_mesh, 7);
    Engine fresh(second, *backend, context_mesh, sizes, trace);
    fresh.initialize();
    copy(engine, fresh);
    fresh.optimizer().set_counters(1, 0, *backend);
    engine.enter_stage(second, context_mesh);
    for (const std::uint64_t seed : {17, 27}) {
      one_step(engine, second, context_mesh, seed);
      one_step(fresh, second, context_mesh, seed);
      EXPECT_EQ(engine.read_step().loss(), fresh.read_step().loss());
    }
    // And back.
    engine.enter_stage(first, data_mesh);
    fresh.enter_stage(first, data_mesh);
    one_step(engine, first, data_mesh, 37);
    one_step(fresh, first, data_mesh, 37);
    auto other = fresh.parameters().parameters().begin();
    for (Parameter& p : engine.parameters().parameters()) {
      EXPECT_EQ(values_of(engine, p.master), values_of(fresh, other->master)) << p.name;
      ++other;
    }
  });
}

}  // namespace
}  // namespace farspan::testing
