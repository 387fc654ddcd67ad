// Saves that the machine refuses: full disk, file size limit, folders that cannot be written. Every
// rank fails with the same code, what was there stays, and the next save works.
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <fstream>

#include "comm/agree.h"
#include "tests/io/checkpoint_fixture.h"
#include "tests/io/processes.h"

namespace farspan::io_test {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int kRanks = 2;
const std::vector<TensorSpec> kTensors = model_tensors(100);  // 1.2 MB

// A file system of its own.
class SmallDisk {
 public:
  SmallDisk(const std::filesystem::path& at, int kilobytes) : at_(at) {
    mounted_ = ::mount("farspan_test", at.c_str(), "tmpfs", 0,
                       fmt::format("size={}k", kilobytes).c_str()) == 0;
  }
  SmallDisk(const SmallDisk&) = delete;
  SmallDisk& operator=(const SmallDisk&) = delete;
  ~SmallDisk() {
    if (mounted_) ::umount2(at_.c_str(), MNT_DETACH);
  }
  bool mounted() const { return mounted_; }

 private:
  std::filesystem::path at_;
  bool mounted_ = false;
};

// Saves one step on all ranks and returns the code each saw (kOk: saved).
std::vector<ExitCode> codes_of_save(const std::filesystem::path& folder, std::int64_t step,
                                    std::string* text = nullptr) {
  std::vector<ExitCode> codes(kRanks, ExitCode::kOk);
  std::vector<int> reports(kRanks, 0);
  run_local_ranks(kRanks, [&](Communicator& world) {
    Log log = quiet_log();
    const auto rank = static_cast<std::size_t>(world.rank());
    const RankShare share = share_of(kTensors, step, world.rank(), kRanks, Split::kEven);
    CheckpointWriter writer(world, {.folder = folder}, log);
    writer.save(step, share.pieces, state_at(step));
    try {
      writer.wait();
    } catch (const SharedError& e) {
      codes[rank] = e.code();
      reports[rank] = e.report() ? 1 : 0;
      if (e.report() && text != nullptr) *text = e.what();
    }
  });
  const bool failed = codes[0] != ExitCode::kOk;
  EXPECT_EQ(reports[0] + reports[1], failed ? 1 : 0) << "one rank tells it";
  return codes;
}

TEST(DiskFull, EverySizeOfDiskEitherHoldsTheCheckpointOrSaysSo) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to mount a small tmpfs";
  const TempFolder folder;
  const auto disk = folder.path() / "disk";
  std::filesystem::create_directory(disk);
  const SmallDisk small(disk, 3200);
  if (!small.mounted()) GTEST_SKIP() << "this machine does not let us mount a tmpfs";
  ASSERT_THAT(codes_of_save(disk / "c", 1), ::testing::Each(ExitCode::kOk));

  int full = 0, saved = 0;
  std::string text;
  for (int filler_kb = 200; filler_kb <= 1900; filler_kb += 20) {  // from enough to nearly nothing
    {
      std::ofstream filler(disk / "filler", std::ios::binary);
      filler << std::string(static_cast<std::size_t>(filler_kb) * 1024, 'x');
    }
    const auto codes = codes_of_save(disk / "c", 2, &text);
    EXPECT_EQ(codes[0], codes[1]);
    if (codes[0] == ExitCode::kOk) {
      ++saved;
      EXPECT_TRUE(holds_step(disk / "c/step_00000002", 2, kTensors));
      std::filesystem::remove_all(disk / "c/step_00000002");
    } else {
      ++full;
      EXPECT_EQ(codes[0], ExitCode::kExhausted) << text;
      EXPECT_THAT(text, HasSubstr("disk full"));
      EXPECT_THAT(text, HasSubstr("rank "));
    }
    EXPECT_THAT(names_in(disk / "c"), ElementsAre("step_00000001")) << filler_kb;
    EXPECT_TRUE(holds_step(disk / "c/step_00000001", 1, kTensors));
    std::filesystem::remove(disk / "filler");
  }
  EXPECT_GT(saved, 3);
  EXPECT_GT(full, 3);
  EXPECT_THAT(codes_of_save(disk / "c", 3), ::testing::Each(ExitCode::kOk));
}

// tmpfs refuses the reservation; a file size limit lets writing begin and stops it midway, in raw
// data or in HDF5's metadata. The child then leaves through HDF5's exit handler (see
// hdf5_driver.h).
TEST(DiskFull, LimitReachedMidwayNeitherCrashesNorCommits) {
  const TempFolder folder;
  save_steps(kRanks, {.folder = folder.path()}, {1}, kTensors);
  const auto shard = folder.path() / "step_00000001/shard_00000.h5";
  const auto size = static_cast<rlim_t>(std::filesystem::file_size(shard));
  for (const rlim_t limit : {rlim_t{1}, rlim_t{100}, rlim_t{5000}, size / 3, size / 2, size - 20000,
                             size - 3000, size - 100, size - 1}) {
    const int rc = exit_code_of([&] {
      std::signal(SIGXFSZ, SIG_IGN);
      const rlimit r{.rlim_cur = limit, .rlim_max = limit};
      if (::setrlimit(RLIMIT_FSIZE, &r) != 0) return 50;
      std::string text;
      const auto codes = codes_of_save(folder.path(), 2, &text);
      if (codes[0] != ExitCode::kExhausted || codes[1] != ExitCode::kExhausted) return 51;
      return text.find("file size limit reached") == std::string::npos ? 52 : 0;
    });
    EXPECT_EQ(rc, 0) << "limit " << limit << " of " << size;
    EXPECT_THAT(names_in(folder.path()), ElementsAre("step_00000001"));
  }
  EXPECT_TRUE(holds_step(folder.path() / "step_00000001", 1, kTensors));
  EXPECT_THAT(codes_of_save(folder.path(), 2), ::testing::Each(ExitCode::kOk));
}

TEST(DiskFull, ALaterSaveOfTheSameWriterMaySucceed) {
  const TempFolder folder;
  const int rc = exit_code_of([&] {
    std::signal(SIGXFSZ, SIG_IGN);
    bool failed = false;
    run_local_ranks(1, [&](Communicator& world) {
      Log log = quiet_log();
      const RankShare share = share_of(kTensors, 1, 0, 1, Split::kEven);
      CheckpointWriter writer(world, {.folder = folder.path()}, log);
      rlimit r{.rlim_cur = 10000, .rlim_max = RLIM_INFINITY};
      ::setrlimit(RLIMIT_FSIZE, &r);
      writer.save(1, share.pieces, state_at(1));
      try {
        writer.wait();
      } catch (const Error&) {
        failed = true;
      }
      r.rlim_cur = RLIM_INFINITY;
      ::setrlimit(RLIMIT_FSIZE, &r);
      writer.save(1, share.pieces, state_at(1));
      writer.wait();
    });
    return failed ? 0 : 1;
  });
  EXPECT_EQ(rc, 0);
  EXPECT_TRUE(holds_step(folder.path() / "step_00000001", 1, kTensors));
}

TEST(Unwritable, IsRefusedWhenTheWriterIsMade) {
  const TempFolder folder;
  ASSERT_EQ(::chmod(folder.path().c_str(), 0555), 0);
  const int rc = exit_code_of([&] {
    const OrdinaryUser user;
    for (const auto& target : {folder.path(), folder.path() / "new"}) {
      std::string text;
      ExitCode code = ExitCode::kOk;
      try {
        save_steps(kRanks, {.folder = target}, {1}, kTensors);
      } catch (const Error& e) {
        code = e.code();
        text = e.what();
      }
      if (code != ExitCode::kUsage || text.find("Permission denied") == std::string::npos)
        return 51;
    }
    return 0;
  });
  EXPECT_EQ(rc, 0);
  ::chmod(folder.path().c_str(), 0755);
}

TEST(Unwritable, AFileInTheWay) {
  const TempFolder folder;
  std::ofstream(folder.path() / "file") << "x";
  const Error e = error_of(
      [&] { save_steps(kRanks, {.folder = folder.path() / "file/checkpoints"}, {1}, kTensors); });
  EXPECT_EQ(e.code(), ExitCode::kUsage);
  EXPECT_THAT(e.what(), HasSubstr("file/checkpoints"));
}

TEST(Unreadable, IsNotTakenForDamage) {
  const TempFolder folder;
  save_steps(1, {.folder = folder.path()}, {1, 2}, kTensors);
  ASSERT_EQ(::chmod((folder.path() / "step_00000002/shard_00000.h5").c_str(), 0), 0);
  ASSERT_EQ(::chmod(folder.path().c_str(), 0755), 0);
  const int rc = exit_code_of([&] {
    const OrdinaryUser user;
    Log log = quiet_log();
    try {
      find_latest_checkpoint(folder.path(), log);
    } catch (const Error& e) {
      return e.code() == ExitCode::kUsage ? 0 : 51;
    }
    return 52;  // it went back to step 1 in silence
  });
  EXPECT_EQ(rc, 0);
}

}  // namespace
}  // namespace farspan::io_test
