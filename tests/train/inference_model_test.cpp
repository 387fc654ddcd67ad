#include "train/inference_model.h"

#include <gmock/gmock.h>

#include "support/engine_runs.h"
#include "support/saved_run.h"
#include "train/temporary_folder.h"

namespace farspan {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using namespace testing;

// Sum of the scored tokens' loss, and their number, over all ranks.
struct Score {
  double loss = 0, valid = 0;
};

Score score(InferenceModel& model, const Batch& batch) {
  const MicroBatch micro = shard(batch, Sharding::from(model.config(), model.mesh().place()));
  std::vector<double> sums(2);
  const auto pass = [&](ForwardEngine& engine) {
    auto scope = engine.scratch().scope();
    const Tensor device_sums = engine.scratch().take(DType::kF64, {2}, "sums");
    engine.backend().kernels().fill({.dst = device_sums, .value = 0}, engine.backend().stream());
    engine.model().forward(
        engine.upload(micro),
        {.loss_sum = device_sums.rows(0, 1), .valid_count = device_sums.rows(1, 1)}, {},
        engine.context(micro));
    engine.mesh().world().all_reduce(device_sums, ReduceOp::kSum, engine.backend().stream()).wait();
    engine.read(device_sums, sums.data());
  };
  model.reserve(pass);
  pass(model.engine());
  return {sums[0], sums[1]};
}

Score score_run(const fs::path& path, const std::vector<std::string>& overrides, int ranks) {
  Score out;
  const Batch batch = random_batch(5, 2, 48, 40, 30);
  run_local_ranks(ranks, [&](Communicator& world) {
    InferenceModel model(path, overrides, {.quiet = true}, world);
    const Score mine = score(model, batch);
    if (world.rank() == 0) out = mine;
  });
  return out;
}

// The training engine's own evaluation.
Score score_engine(const config::RunConfig& config) {
  const auto world = make_self_communicator();
  const auto backend = make_backend({});
  const Mesh mesh(*world, 1, 1);
  Trace trace;
  Engine engine(config, *backend, mesh, dry_run(config, 0, 1).sizes, trace);
  engine.initialize();
  const MicroBatch micro =
      shard(random_batch(5, 2, 48, 40, 30), Sharding::from(config, mesh.place()));
  MemoryProbe probe(config, 0, 1, dry_run(config, 0, 1).sizes);
  engine.reserve(probe.evaluate(micro));
  engine.evaluate(micro);
  const EvalResult r = engine.read_evaluation();
  return {r.loss_sum, r.valid_tokens};
}

TEST(InferenceModel, ComputesWhatTheTrainingEngineDoes) {
  for (const char* precision : {"fp32", "bf16"}) {
    const TemporaryFolder folder;
    config::RunConfig config = saved_config(precision);
    save_run(folder.path(), config);
    config.set_seed(config.seed() + 1);
    const Score want = score_engine(config);
    const Score got = score_run(folder.path(), {}, 1);
    EXPECT_EQ(got.loss, want.loss) << precision;
    EXPECT_EQ(got.valid, want.valid);
    for (const int ranks : {2, 3})
      EXPECT_NEAR(score_run(folder.path(), {}, ranks).loss, want.loss,
                  std::string_view(precision) == "fp32" ? 1e-4 : 0.1)
          << ranks << " ranks " << precision;
    EXPECT_EQ(score_run(folder.path(), {"train.precision=fp32"}, 1).loss,
              [&] {
                config.mutable_train()->set_precision("fp32");
                return score_engine(config).loss;
              }())
        << "a " << precision << " run read as fp32";
  }
}

TEST(InferenceModel, HoldsWeightsAndNothingElse) {
  const TemporaryFolder folder;
  save_run(folder.path(), saved_config("bf16"));
  const auto world = make_self_communicator();
  InferenceModel model(folder.path(), {}, {}, *world);
  const auto n = static_cast<std::size_t>(model.parameters());
  EXPECT_LT(model.engine().weights().capacity(), 3 * n) << n << " parameters of 2 bytes";
}

TEST(InferenceModel, TakesTheNewestCheckpointThatVerifies) {
  const TemporaryFolder folder;
  const fs::path newest = save_run(folder.path(), saved_config(), {1, 2, 3});
  const auto world = make_self_communicator();
  EXPECT_EQ(InferenceModel(folder.path(), {}, {}, *world).step(), 3);
  EXPECT_EQ(InferenceModel(folder.path() / "checkpoints", {}, {}, *world).step(), 3);
  EXPECT_EQ(InferenceModel(folder.path() / "checkpoints" / "step_00000001", {}, {}, *world).step(),
            1);
  fs::resize_file(newest / "shard_00000.h5", 100);
  run_local_ranks(2, [&](Communicator& ranks) {
    EXPECT_EQ(InferenceModel(folder.path(), {}, {.quiet = true}, ranks).step(), 2);
  });
}

// What the error says, with its code.
std::string refusal(const fs::path& path, const std::vector<std::string>& overrides = {}) {
  const auto world = make_self_communicator();
  try {
    InferenceModel(path, overrides, {.quiet = true}, *world);
  } catch (const Error& error) {
    return fmt::format("{} {}", static_cast<int>(error.code()), error.what());
  }
  return "accepted";
}

TEST(InferenceModel, SaysWhatIsNoModel) {
  const TemporaryFolder folder;
  EXPECT_THAT(refusal(folder / "absent"), HasSubstr("2 there is no such run or checkpoint"));
  EXPECT_THAT(refusal(folder.path()), HasSubstr("2 holds no run and no checkpoint"));
  write_all(folder / "config.json", "{}");
  EXPECT_THAT(refusal(folder.path()), HasSubstr("2 is a Hugging Face directory"));
  EXPECT_THAT(refusal(folder / "config.json"), HasSubstr("2 is a file"));
  fs::create_directories(folder / "checkpoints");
  EXPECT_THAT(refusal(folder.path()), HasSubstr("3 the run has no checkpoint yet"));
}

TEST(InferenceModel, RefusesDamagedCheckpoints) {
  const TemporaryFolder folder;
  const fs::path checkpoint = save_run(folder.path(), saved_config());
  fs::resize_file(checkpoint / "shard_00000.h5", 100);
  EXPECT_THAT(refusal(folder.path()), HasSubstr("3 the run has checkpoints, and none of them"));
  EXPECT_THAT(refusal(checkpoint), HasSubstr("shard_00000.h5"));
}

TEST(InferenceModel, TakesOverridesThatKeepTheWeights) {
  const TemporaryFolder folder;
  save_run(folder.path(), saved_config());
  EXPECT_THAT(refusal(folder.path(), {"model.hidden_size=64"}), HasSubstr("2 "));
  EXPECT_THAT(refusal(folder.path(), {"model.hidden_size=64"}),
              HasSubstr("model.hidden_size: is the shape or the nature of the saved weights"));
  EXPECT_THAT(refusal(folder.path(), {"optimizer.lr=1"}),
              HasSubstr("optimizer.lr: is read by training only"));
  EXPECT_THAT(refusal(folder.path(), {"model.rope.thta=1"}), HasSubstr("thta"));
  EXPECT_THAT(refusal(folder.path(), {"parallel.context=2"}), HasSubstr("parallel.context"));
  EXPECT_EQ(refusal(folder.path(),
                    {"model.rope.scaling.type=linear", "model.rope.scaling.original_context=48",
                     "model.rope.scaling.factor=4", "model.sliding_window=8"}),
            "accepted");
}

// The saved configuration is resolved: what followed from the old factor must not stay.
TEST(InferenceModel, ANewFactorReplacesTheOldTarget) {
  const TemporaryFolder folder;
  config::RunConfig config = saved_config();
  auto& scaling = *config.mutable_model()->mutable_rope()->mutable_scaling();
  scaling.set_type("linear");
  scaling.set_original_context(48);
  scaling.set_factor(2);
  scaling.set_target_context(96);
  save_run(folder.path(), config);
  const auto world = make_self_communicator();
  const std::vector<std::string> overrides = {"model.rope.scaling.factor=8"};
  const InferenceModel model(folder.path(), overrides, {}, *world);
  EXPECT_EQ(model.config().model().rope().scaling().target_context(), 384);
  EXPECT_EQ(model.trained_context(), 96);
}

}  // namespace
}  // namespace farspan
