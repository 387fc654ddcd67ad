// SIGKILL at every point of the commit protocol and at random moments: what was committed stays,
// what is found is whole, and the next run goes on as if nothing had happened.
#include <chrono>
#include <csignal>
#include <mutex>
#include <random>
#include <thread>

#include "io/checkpoint_folder.h"
#include "tests/io/checkpoint_fixture.h"
#include "tests/io/processes.h"

namespace farspan::io_test {
namespace {

constexpr int kRanks = 2;
const std::vector<TensorSpec> kTensors = model_tensors(40);

// Saves steps first, first + 1, ... and tells `acknowledge` (a pipe) each that was committed.
void save_on(const std::filesystem::path& folder, std::int64_t first, std::int64_t last,
             const std::function<void(std::string_view)>& on_point, int acknowledge) {
  run_local_ranks(kRanks, [&](Communicator& world) {
    Log log = quiet_log();
    CheckpointWriter writer(world, {.folder = folder, .keep_last = 2, .on_point = on_point}, log);
    for (std::int64_t step = first; step <= last; ++step) {
      const RankShare share = share_of(kTensors, step, world.rank(), kRanks, Split::kEven);
      writer.save(step, share.pieces, state_at(step));
      writer.wait();
      if (world.rank() == 0)
        FARSPAN_CHECK(::write(acknowledge, &step, sizeof(step)) == sizeof(step));
    }
  });
}

std::int64_t last_acknowledged(int pipe_end) {
  std::int64_t step = 0, last = 0;
  while (::read(pipe_end, &step, sizeof(step)) == sizeof(step)) last = step;
  return last;
}

// What holds in `folder` after any kill. Returns the step found (0: none).
std::int64_t check_after_kill(const std::filesystem::path& folder, std::int64_t acknowledged) {
  Log log = quiet_log();
  const auto latest = find_latest_checkpoint(folder, log);
  const std::int64_t found =
      latest ? io::step_of(latest->filename().string()).value() : std::int64_t{0};
  EXPECT_GE(found, acknowledged) << "a committed checkpoint is lost";
  EXPECT_LE(found, acknowledged + 1);
  for (const CheckpointFolder& c : list_checkpoints(folder))  // nothing half under its own name
    EXPECT_TRUE(holds_step(c.path, c.step, kTensors));
  return found;
}

struct Kill {
  const char* point;
  int occurrence;  // counted over all ranks
};

class KillAt : public ::testing::TestWithParam<Kill> {};

TEST_P(KillAt, NothingCommittedIsLost) {
  const Kill kill = GetParam();
  const TempFolder folder;
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const pid_t child = start_child([&] {
    ::close(ends[0]);
    std::mutex mutex;
    int seen = 0;
    save_on(
        folder.path(), 1, 6,
        [&](std::string_view point) {
          const std::lock_guard held(mutex);
          if (point == kill.point && ++seen == kill.occurrence) ::raise(SIGKILL);
        },
        ends[1]);
    return 0;
  });
  ::close(ends[1]);
  const int status = end_of(child);
  ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << "never reached " << kill.point;
  const std::int64_t acknowledged = last_acknowledged(ends[0]);
  ::close(ends[0]);
  const std::int64_t found = check_after_kill(folder.path(), acknowledged);

  // The next run continues and leaves nothing of the dead one behind.
  save_steps(kRanks, {.folder = folder.path(), .keep_last = 1}, {found + 1}, kTensors);
  EXPECT_THAT(names_in(folder.path()), ::testing::ElementsAre(io::step_folder_name(found + 1)));
  EXPECT_TRUE(holds_step(folder.path() / io::step_folder_name(found + 1), found + 1, kTensors));
}

INSTANTIATE_TEST_SUITE_P(
    Points, KillAt,
    ::testing::Values(Kill{"begun", 1}, Kill{"begun", 4}, Kill{"shard_written", 1},
                      Kill{"shard_written", 2}, Kill{"shard_written", 5},
                      Kill{"manifest_written", 1}, Kill{"manifest_written", 3}, Kill{"renamed", 1},
                      Kill{"renamed", 3}, Kill{"pruning", 1}, Kill{"pruning", 3}),
    [](const auto& c) { return fmt::format("{}_{}", c.param.point, c.param.occurrence); });

TEST(KillAtRandom, NothingCommittedIsLost) {
  std::mt19937 random(20240607);
  const TempFolder folder;  // one folder through all kills, as a run that is restarted has
  std::int64_t found = 0;
  int committed = 0;
  constexpr int kKills = 40;
  for (int i = 0; i < kKills; ++i) {
    int ends[2];
    ASSERT_EQ(::pipe(ends), 0);
    const pid_t child = start_child([&] {
      ::close(ends[0]);
      save_on(folder.path(), found + 1, found + 1000, {}, ends[1]);
      return 0;
    });
    ::close(ends[1]);
    std::this_thread::sleep_for(
        std::chrono::microseconds(std::uniform_int_distribution<int>(2000, 120000)(random)));
    ::kill(child, SIGKILL);
    ASSERT_TRUE(WIFSIGNALED(end_of(child)));
    const std::int64_t acknowledged = std::max(found, last_acknowledged(ends[0]));
    ::close(ends[0]);
    const std::int64_t before = found;
    found = check_after_kill(folder.path(), acknowledged);
    committed += found > before ? 1 : 0;
    ASSERT_FALSE(HasFailure()) << "kill " << i;
  }
  // Otherwise the kills were all too early to test anything.
  EXPECT_GT(committed, 3);
}

}  // namespace
}  // namespace farspan::io_test
