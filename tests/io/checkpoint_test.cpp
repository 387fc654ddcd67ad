// Round trips over any split and number of ranks, digests, the asynchronous interface, replacing,
// pruning, and what killed runs leave behind.
#include <condition_variable>
#include <fstream>
#include <mutex>
#include <thread>

#include "io/checkpoint_folder.h"
#include "io/manifest.h"
#include "tests/io/checkpoint_fixture.h"

namespace farspan::io_test {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const std::vector<TensorSpec> kSmall = model_tensors(20);

struct Case {
  int ranks;
  Split split;
};

class RoundTrip : public ::testing::TestWithParam<Case> {};

TEST_P(RoundTrip, AnyReaderFindsWhatWasWritten) {
  const auto [ranks, split] = GetParam();
  const TempFolder folder;
  const auto tensors = model_tensors(600);
  save_steps(ranks, {.folder = folder.path()}, {50}, tensors, split);
  const auto path = folder.path() / "step_00000050";
  EXPECT_TRUE(holds_step(path, 50, tensors));
  const CheckpointReader reader(path);
  EXPECT_EQ(reader.manifest().shards_size(), ranks);
  // Readers that cut differently.
  for (const int readers : {1, 3, 7})
    for (const TensorSpec& t : tensors)
      for (int r = 0; r < readers; ++r) {
        const std::int64_t n = t.shape.numel();
        EXPECT_TRUE(holds(reader, t, 50, n * r / readers, n * (r + 1) / readers));
      }
}

INSTANTIATE_TEST_SUITE_P(Ranks, RoundTrip,
                         ::testing::Values(Case{1, Split::kEven}, Case{2, Split::kEven},
                                           Case{3, Split::kWhole}, Case{4, Split::kIrregular},
                                           Case{5, Split::kIrregular}),
                         [](const auto& c) {
                           return fmt::format("{}ranks_split{}", c.param.ranks,
                                              static_cast<int>(c.param.split));
                         });

TEST(Checkpoint, DigestsDoNotDependOnSharding) {
  const TempFolder folder;
  std::vector<CheckpointDigest> digests;
  for (const Case c : {Case{1, Split::kEven}, Case{2, Split::kEven}, Case{3, Split::kWhole},
                       Case{4, Split::kIrregular}}) {
    const auto to = folder.path() / std::to_string(digests.size());
    save_steps(c.ranks, {.folder = to}, {7}, kSmall, c.split);
    digests.push_back(digest_checkpoint(to / "step_00000007"));
  }
  for (const auto& d : digests) {
    EXPECT_EQ(d.weights, digests[0].weights);
    EXPECT_EQ(d.optimizer, digests[0].optimizer);
    EXPECT_EQ(d.data, digests[0].data);
    EXPECT_EQ(d.weights.size(), 32u);
    EXPECT_NE(d.weights, d.optimizer);
  }
  save_steps(1, {.folder = folder.path()}, {8}, kSmall);
  const CheckpointDigest other = digest_checkpoint(folder.path() / "step_00000008");
  EXPECT_NE(other.weights, digests[0].weights);
  EXPECT_NE(other.optimizer, digests[0].optimizer);
  EXPECT_NE(other.data, digests[0].data);
}

TEST(Checkpoint, OneElementOfOneTensorChangesItsDigestOnly) {
  const TempFolder folder;
  const auto save = [&](const char* name, const std::string& changed) {
    run_local_ranks(1, [&](Communicator& world) {
      Log log = quiet_log();
      CheckpointWriter writer(world, {.folder = folder.path() / name}, log);
      RankShare share = share_of(kSmall, 1, 0, 1, Split::kEven);
      for (std::size_t i = 0; i < share.pieces.size(); ++i)
        if (share.pieces[i].name == changed) share.memory[i].back() += 1;
      writer.save(1, share.pieces, state_at(1));
      writer.wait();
    });
    return digest_checkpoint(folder.path() / name / "step_00000001");
  };
  const auto base = save("a", ""), weight = save("b", "model.norm.weight"),
             moment = save("c", "adamw.v/model.norm.weight");
  EXPECT_NE(weight.weights, base.weights);
  EXPECT_EQ(weight.optimizer, base.optimizer);
  EXPECT_EQ(moment.weights, base.weights);
  EXPECT_NE(moment.optimizer, base.optimizer);
}

TEST(Checkpoint, BFloat16AndIntegersRoundTrip) {
  const TempFolder folder;
  std::vector<BFloat16> half = {BFloat16(1.5f), BFloat16(-2.0f), BFloat16(0.1f)};
  std::vector<std::int64_t> ints = {-1, 1LL << 40};
  run_local_ranks(1, [&](Communicator& world) {
    Log log = quiet_log();
    CheckpointWriter writer(world, {.folder = folder.path()}, log);
    writer.save(1,
                {{.name = "half", .global_shape = {3}, .data = host_tensor(half.data(), {3})},
                 {.name = "ints", .global_shape = {2}, .data = host_tensor(ints.data(), {2})}},
                state_at(1));
    writer.wait();
  });
  const CheckpointReader reader(folder.path() / "step_00000001");
  std::vector<BFloat16> half2(3);
  std::vector<std::int64_t> ints2(2);
  reader.read("half", 0, host_tensor(half2.data(), {3}));
  reader.read("ints", 0, host_tensor(ints2.data(), {2}));
  for (int i = 0; i < 3; ++i)
    EXPECT_EQ(half2[static_cast<std::size_t>(i)].bits, half[static_cast<std::size_t>(i)].bits);
  EXPECT_EQ(ints2, ints);
  std::vector<float> wrong(3);
  EXPECT_EQ(error_of([&] { reader.read("half", 0, host_tensor(wrong.data(), {3})); }).code(),
            ExitCode::kBadData);
}

TEST(Checkpoint, ReaderRefusesWhatItDoesNotHold) {
  const TempFolder folder;
  save_steps(2, {.folder = folder.path()}, {1}, kSmall);
  const CheckpointReader reader(folder.path() / "step_00000001/");
  std::vector<float> out(78);
  const auto read = [&](const char* name, std::int64_t offset, std::int64_t count) {
    return error_of([&] { reader.read(name, offset, host_tensor(out.data(), {count})); });
  };
  EXPECT_THAT(read("model.other", 0, 1).what(), HasSubstr("no tensor model.other"));
  EXPECT_THAT(read("model.norm.weight", 0, 78).what(), HasSubstr("77 elements"));
  EXPECT_EQ(read("model.norm.weight", 77, 1).code(), ExitCode::kBadData);
  EXPECT_EQ(reader.find("model.other"), nullptr);
  ASSERT_NE(reader.find("model.norm.weight"), nullptr);
  EXPECT_EQ(reader.find("model.norm.weight")->shape(0), 77);
  EXPECT_THAT(error_of([&] { CheckpointReader none(folder.path() / "step_00000002"); }).what(),
              HasSubstr("no such checkpoint"));
}

TEST(Checkpoint, GapsAndOverlapsAreCaughtBeforeTheCommit) {
  for (const std::int64_t second : {9, 11}) {  // 10 would be right
    const TempFolder folder;
    std::vector<float> data(20);
    const Error e = error_of([&] {
      run_local_ranks(2, [&](Communicator& world) {
        Log log = quiet_log();
        CheckpointWriter writer(world, {.folder = folder.path()}, log);
        const bool first = world.rank() == 0;
        const std::int64_t begin = first ? 0 : second, end = first ? 10 : 20;
        const TensorPiece piece{.name = "w",
                                .global_shape = {20},
                                .offset = begin,
                                .data = host_tensor(data.data(), {end - begin})};
        writer.save(1, {piece}, state_at(1));
        writer.wait();
      });
    });
    EXPECT_EQ(e.code(), ExitCode::kInternal);
    EXPECT_THAT(e.what(), HasSubstr(second < 10 ? "in two shards" : "in no shard"));
    EXPECT_THAT(names_in(folder.path()), IsEmpty());
  }
}

TEST(Checkpoint, SaveReturnsAtOnceAndPollDelivers) {
  const TempFolder folder;
  std::mutex mutex;
  std::condition_variable changed;
  bool go = false;
  run_local_ranks(1, [&](Communicator& world) {
    Log log = quiet_log();
    CheckpointWriter writer(world,
                            {.folder = folder.path(),
                             .on_point =
                                 [&](std::string_view point) {
                                   if (point != "shard_written") return;
                                   std::unique_lock held(mutex);
                                   changed.wait(held, [&] { return go; });
                                 }},
                            log);
    EXPECT_FALSE(writer.busy());
    EXPECT_FALSE(writer.poll());
    EXPECT_FALSE(writer.wait());
    const RankShare share = share_of(kSmall, 5, 0, 1, Split::kEven);
    writer.save(5, share.pieces, state_at(5));  // would not return if it waited for the disk
    EXPECT_TRUE(writer.busy());
    EXPECT_FALSE(writer.poll());
    EXPECT_FALSE(std::filesystem::exists(folder.path() / "step_00000005"));
    {
      const std::lock_guard held(mutex);
      go = true;
    }
    changed.notify_all();
    std::optional<SaveOutcome> outcome;
    while (!(outcome = writer.poll())) std::this_thread::yield();
    EXPECT_EQ(outcome->step, 5);
    EXPECT_EQ(outcome->path, folder.path() / "step_00000005");
    EXPECT_GT(outcome->bytes, 0);
    EXPECT_FALSE(writer.poll());  // once only
  });
  EXPECT_TRUE(holds_step(folder.path() / "step_00000005", 5, kSmall));
}

TEST(Checkpoint, DestructorFinishesTheSaveUnderWay) {
  const TempFolder folder;
  run_local_ranks(2, [&](Communicator& world) {
    const RankShare share = share_of(kSmall, 5, world.rank(), 2, Split::kEven);
    Log log = quiet_log();
    CheckpointWriter writer(world, {.folder = folder.path()}, log);
    writer.save(5, share.pieces, state_at(5));
  });
  EXPECT_TRUE(holds_step(folder.path() / "step_00000005", 5, kSmall));
}

TEST(Checkpoint, TwoSavesInARowBothComplete) {
  const TempFolder folder;
  run_local_ranks(2, [&](Communicator& world) {
    const RankShare a = share_of(kSmall, 1, world.rank(), 2, Split::kEven);
    const RankShare b = share_of(kSmall, 2, world.rank(), 2, Split::kEven);
    Log log = quiet_log();
    CheckpointWriter writer(world, {.folder = folder.path()}, log);
    writer.save(1, a.pieces, state_at(1));
    writer.save(2, b.pieces, state_at(2));
    EXPECT_EQ(writer.wait()->step, 1);
    EXPECT_EQ(writer.wait()->step, 2);
    EXPECT_FALSE(writer.wait());
  });
  EXPECT_TRUE(holds_step(folder.path() / "step_00000001", 1, kSmall));
  EXPECT_TRUE(holds_step(folder.path() / "step_00000002", 2, kSmall));
}

TEST(Checkpoint, AnExistingStepIsReplaced) {
  const TempFolder folder;
  const auto path = folder.path() / "step_00000003";
  save_steps(3, {.folder = folder.path()}, {3}, kSmall);
  std::ofstream(path / "shard_00001.h5", std::ios::app) << "x";  // the old one is damaged
  bool stood_until_renamed = false;
  save_steps(1,
             {.folder = folder.path(),
              .on_point =
                  [&](std::string_view point) {
                    if (point == "manifest_written")
                      stood_until_renamed = std::filesystem::exists(path / "shard_00002.h5");
                  }},
             {3}, kSmall);
  EXPECT_TRUE(stood_until_renamed);
  EXPECT_TRUE(holds_step(path, 3, kSmall));
  EXPECT_THAT(names_in(folder.path()), ElementsAre("step_00000003"));
  EXPECT_THAT(names_in(path), ElementsAre("manifest.json", "manifest.pb", "shard_00000.h5"));
}

TEST(Checkpoint, ManifestKeepsConfigurationAndVersions) {
  const TempFolder folder;
  save_steps(1, {.folder = folder.path(), .config_yaml = "name: x\n", .code_version = "0.1.0"}, {3},
             kSmall);
  const CheckpointReader reader(folder.path() / "step_00000003");
  EXPECT_EQ(reader.manifest().config_yaml(), "name: x\n");
  EXPECT_EQ(reader.manifest().code_version(), "0.1.0");
  EXPECT_EQ(reader.manifest().created().size(), 20u);
  std::ifstream json(folder.path() / "step_00000003/manifest.json");
  const std::string text((std::istreambuf_iterator<char>(json)), {});
  EXPECT_THAT(text, HasSubstr("model.norm.weight"));
}

TEST(Prune, Rules) {
  using io::steps_to_prune;
  EXPECT_THAT(steps_to_prune({10, 20, 30, 40}, 40, {.keep_last = 2}), ElementsAre(10, 20));
  EXPECT_THAT(steps_to_prune({10, 20, 30, 40}, 40, {.keep_last = 1, .keep_every = 20}),
              ElementsAre(10, 30));
  EXPECT_THAT(steps_to_prune({10, 20}, 20, {.keep_last = 3}), IsEmpty());
  // The one just saved stays, also below newer ones of an earlier run.
  EXPECT_THAT(steps_to_prune({10, 20, 90, 100}, 20, {.keep_last = 1}), ElementsAre(10, 90));
}

TEST(Prune, KeepsTheLastAndTheMultiples) {
  const TempFolder folder;
  save_steps(2, {.folder = folder.path(), .keep_last = 2, .keep_every = 4}, {1, 2, 3, 4, 5, 6, 7},
             kSmall);
  EXPECT_THAT(names_in(folder.path()),
              ElementsAre("step_00000004", "step_00000006", "step_00000007"));
}

TEST(Prune, DamagedFoldersNeitherCountNorGo) {
  const TempFolder folder;
  save_steps(1, {.folder = folder.path()}, {1, 2}, kSmall);
  std::filesystem::remove(folder.path() / "step_00000002/manifest.pb");
  save_steps(1, {.folder = folder.path(), .keep_last = 2}, {3}, kSmall);
  EXPECT_THAT(names_in(folder.path()),
              ElementsAre("step_00000001", "step_00000002", "step_00000003"));
}

TEST(Stale, OnlyTemporaryNamesOfKilledRunsAreRemoved) {
  const TempFolder folder;
  for (const char* name : {"step_00000001.tmp.0123", "step_00000009.tmp.dead/sub", "notes",
                           "step_00000002.superseded.1", "step_abc.tmp.1", "step_2"})
    std::filesystem::create_directories(folder.path() / name);
  save_steps(2, {.folder = folder.path()}, {4}, kSmall);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("notes", "step_00000002.superseded.1",
                                                   "step_00000004", "step_2", "step_abc.tmp.1"));
}

TEST(FindLatest, SkipsWhatDoesNotVerify) {
  const TempFolder folder;
  Log log = quiet_log();
  EXPECT_FALSE(find_latest_checkpoint(folder.path() / "absent", log));
  EXPECT_FALSE(find_latest_checkpoint(folder.path(), log));
  save_steps(2, {.folder = folder.path()}, {1, 2, 3}, kSmall);
  std::filesystem::create_directories(folder.path() / "step_00000009");  // empty
  std::filesystem::create_directories(folder.path() / "step_00000010.tmp.aa");
  EXPECT_EQ(find_latest_checkpoint(folder.path(), log), folder.path() / "step_00000003");
  std::filesystem::resize_file(folder.path() / "step_00000003/shard_00001.h5", 100);
  EXPECT_EQ(find_latest_checkpoint(folder.path(), log), folder.path() / "step_00000002");
  // A copy under a later name is not that later step.
  std::filesystem::copy(folder.path() / "step_00000001", folder.path() / "step_00000011");
  EXPECT_EQ(find_latest_checkpoint(folder.path(), log), folder.path() / "step_00000002");
  EXPECT_TRUE(std::filesystem::exists(folder.path() / "step_00000009"));
}

TEST(SetAside, LaterStepsAreOutOfTheWay) {
  const TempFolder folder;
  Log log = quiet_log();
  save_steps(1, {.folder = folder.path()}, {1, 2, 3}, kSmall);
  set_aside_checkpoints_after(folder.path(), 1, log);
  EXPECT_EQ(find_latest_checkpoint(folder.path(), log), folder.path() / "step_00000001");
  EXPECT_EQ(names_in(folder.path()).size(), 3u);
}

TEST(Lock, TheSecondRunIsRefused) {
  const TempFolder folder;
  Log log = quiet_log();
  std::optional<io::FolderLock> first;
  first.emplace(folder.path(), 0, log);
  const Error e = error_of([&] { io::FolderLock second(folder.path(), 0.1, log); });
  EXPECT_EQ(e.code(), ExitCode::kUsage);
  EXPECT_THAT(e.what(), HasSubstr("another run"));
  first.reset();
  io::FolderLock third(folder.path(), 0, log);
}

}  // namespace
}  // namespace farspan::io_test
