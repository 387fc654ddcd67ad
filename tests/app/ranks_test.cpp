// run_ranks as three kinds of jobs: alone, threads and mpirun. Each failure must give its exit code
// and be printed exactly once, and nothing may hang.
#include "app/ranks.h"

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "app/machine.h"

namespace farspan::app {
namespace {

namespace fs = std::filesystem;

struct Outcome {
  int code = -1;
  std::string out, err;
};

int count(const std::string& text, const std::string& words) {
  int n = 0;
  for (std::size_t at = text.find(words); at != text.npos; at = text.find(words, at + 1)) ++n;
  return n;
}

class Ranks : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::path(testing::TempDir()) / "farspan_ranks_XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override { fs::remove_all(folder_); }

  Outcome shell(const std::string& command) const {
    const std::string out = folder_ / "out", err = folder_ / "err";
    const int status = std::system(
        ("timeout 60 env " + command + " >" + out + " 2>" + err + " </dev/null").c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, text_of(out), text_of(err)};
  }
  Outcome threads(const std::string& mode, int ranks) const {
    return shell("'" FARSPAN_PROBE "' " + mode + " " + std::to_string(ranks));
  }
  Outcome mpi(const std::string& mode, int ranks, const std::string& variables = "") const {
    return shell(
        "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 "
        "OMPI_MCA_rmaps_base_oversubscribe=1 " +
        variables + " '" FARSPAN_MPIEXEC "' -np " + std::to_string(ranks) +
        " '" FARSPAN_PROBE "' " + mode);
  }

  static std::string text_of(const fs::path& path) {
    std::ostringstream out;
    out << std::ifstream(path).rdbuf();
    return out.str();
  }

  fs::path folder_;
};

TEST_F(Ranks, Alone) {
  const Outcome good = threads("ok", 0);
  EXPECT_EQ(good.code, 0) << good.err;
  EXPECT_EQ(count(good.out, "rank 0 of 1 on self"), 1) << good.out;
  EXPECT_EQ(threads("shared", 0).code, 3);
  EXPECT_EQ(count(threads("shared", 0).err, "the store is damaged"), 1);
  EXPECT_EQ(threads("memory", 1).code, 4);
}

TEST_F(Ranks, Threads) {
  const Outcome good = threads("ok", 3);
  EXPECT_EQ(good.code, 0) << good.err;
  for (int rank = 0; rank < 3; ++rank)
    EXPECT_EQ(count(good.out, "rank " + std::to_string(rank) + " of 3 on thread"), 1) << good.out;
}

TEST_F(Ranks, EveryFailureIsPrintedOnceWithItsCode) {
  struct Case {
    const char* mode;
    int code;
    const char* words;
  };
  for (const Case& c :
       {Case{"shared", 3, "the store is damaged"}, Case{"everyone", 2, "a wrong key"},
        Case{"alone", 4, "the disk is full"}, Case{"memory", 4, "out of memory"}}) {
    for (const auto& [kind, outcome] :
         {std::pair{"threads", threads(c.mode, 3)}, std::pair{"mpi", mpi(c.mode, 3)}}) {
      EXPECT_EQ(outcome.code, c.code) << c.mode << " " << kind << "\n" << outcome.err;
      EXPECT_EQ(count(outcome.err, c.words), 1) << c.mode << " " << kind << "\n" << outcome.err;
      EXPECT_EQ(count(outcome.err, "farspan: error: "), 1) << c.mode << " " << kind << "\n"
                                                           << outcome.err;
    }
  }
}

TEST_F(Ranks, MpiSharesTheCoresOfAMachine) {
  const Outcome good = mpi("ok", 2);
  ASSERT_EQ(good.code, 0) << good.err;
  EXPECT_EQ(count(good.out, "of 2 on mpi"), 2) << good.out;
  const Machine machine = read_machine();
  const int cores = usable_cores(machine.cores_bound, machine.cores_quota);
  if (std::getenv("OMP_NUM_THREADS") == nullptr) {
    const std::string words = "threads " + std::to_string(std::max(1, cores / 2)) + " ";
    EXPECT_EQ(count(good.out, words), 2) << good.out;
  }
  EXPECT_EQ(count(mpi("ok", 2, "OMP_NUM_THREADS=3").out, "threads 3 "), 2);
  EXPECT_EQ(count(mpi("ok", 2, "OMP_NUM_THREADS=2,1").out, "threads 2 "), 2);
}

TEST_F(Ranks, LocalRanksUnderMpirunAreRefusedOnce) {
  const Outcome outcome = mpi("ok 2", 2);
  EXPECT_EQ(outcome.code, 2);
  EXPECT_EQ(count(outcome.err, "--local-ranks was given"), 1) << outcome.err;
}

TEST_F(Ranks, SlurmTasksWithoutMpiAreRefused) {
  const std::string slurm = "SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=4 ";
  const Outcome first = shell(slurm + "SLURM_PROCID=0 '" FARSPAN_PROBE "'");
  EXPECT_EQ(first.code, 2);
  EXPECT_EQ(count(first.err, "--mpi=pmix"), 1) << first.err;
  EXPECT_EQ(shell(slurm + "SLURM_PROCID=1 '" FARSPAN_PROBE "'").err, "");
}

TEST(Machine, UsableCores) {
  EXPECT_EQ(usable_cores(8, 0), 8);
  EXPECT_EQ(usable_cores(8, 2.0), 2);
  EXPECT_EQ(usable_cores(8, 1.5), 2);
  EXPECT_EQ(usable_cores(1, 16), 1);
  EXPECT_EQ(usable_cores(0, 0), 1);
  const Machine machine = read_machine();
  EXPECT_GE(machine.cores_bound, 1);
  EXPECT_LE(machine.cores_bound, machine.cores_online);
  EXPECT_GT(machine.memory_total, machine.memory_free / 2);
}

}  // namespace
}  // namespace farspan::app
