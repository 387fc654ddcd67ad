#include "app/ranks.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdlib>
#include <fstream>
#include <string>

#include "app/machine.h"
#include "app/report.h"
#include "comm/agree.h"
#include "comm/factory.h"
#include "core/rng.h"

namespace farspan::app {
namespace {

int environment_int(const char* name) {
  const std::string text = environment_variable(name);
  char* end = nullptr;
  const long value = std::strtol(text.c_str(), &end, 10);
  return end == text.c_str() || value < 0 || value > 1'000'000 ? 0 : static_cast<int>(value);
}

// OMP_NUM_THREADS may be a list, one number per nesting level: the first counts.
int requested_threads() { return environment_int("OMP_NUM_THREADS"); }

int share_of(int cores, int ranks) {
  const int requested = requested_threads();
  return requested > 0 ? requested : std::max(1, cores / std::max(1, ranks));
}

int own_cores() {
  int bound = 0;
  for (std::int64_t word : affinity_mask())
    bound += std::popcount(static_cast<std::uint64_t>(word));
  return usable_cores(bound, cpu_quota());
}

// A launcher that starts several tasks without telling MPI would run the job several times over, in
// the same folder.
void refuse_tasks_without_mpi() {
  if (started_by_mpi() || environment_variable("SLURM_STEP_ID").empty()) return;
  const int tasks = environment_int("SLURM_STEP_NUM_TASKS");
  if (tasks <= 1) return;
  const Error error(
      ExitCode::kUsage,
      {.what = fmt::format("srun started {} tasks that do not know of one another", tasks),
       .where = "SLURM_STEP_NUM_TASKS is set, and no PMIx",
       .fix = "use srun --mpi=pmix, or mpirun inside the allocation "
              "(launch/slurm.sbatch)"});
  const int task = environment_int("SLURM_PROCID");
  throw SharedError(error, 0, task == 0);
}

// Threads for each rank of this machine. mpirun may bind ranks to cores of their own, or let all of
// them roam over all cores: the union of the ranks' masks is right for both. Collective.
int threads_of_rank(Communicator& world, int local_size) {
  if (const int requested = requested_threads(); requested > 0) return requested;
  constexpr std::size_t kWords = 1024 / 64 + 1;
  std::array<char, 256> host{};
  gethostname(host.data(), host.size() - 1);
  std::vector<std::int64_t> mine = {static_cast<std::int64_t>(stream_id(host.data()))};
  for (std::int64_t word : affinity_mask()) mine.push_back(word);
  mine.resize(kWords);
  std::vector<std::int64_t> all(kWords * static_cast<std::size_t>(world.size()));
  Stream stream;
  world
      .all_gather(host_tensor(mine.data(), {static_cast<std::int64_t>(kWords)}),
                  host_tensor(all.data(), {static_cast<std::int64_t>(all.size())}), stream)
      .wait();
  world.reset_counters();
  int cores = 0, own = 0;
  for (std::size_t word = 1; word < kWords; ++word) {
    std::uint64_t together_mask = 0;
    for (std::size_t rank = 0; rank < all.size() / kWords; ++rank)
      if (all[rank * kWords] == mine[0])
        together_mask |= static_cast<std::uint64_t>(all[rank * kWords + word]);
    cores += std::popcount(together_mask);
    own += std::popcount(static_cast<std::uint64_t>(mine[word]));
  }
  return std::min(share_of(usable_cores(cores, cpu_quota()), local_size), std::max(1, own));
}

std::string host_id() {
  if (const std::string given = environment_variable("NCCL_HOSTID"); !given.empty()) return given;
  std::array<char, 256> name{};
  gethostname(name.data(), name.size() - 1);
  std::ifstream boot("/proc/sys/kernel/random/boot_id");  // containers may share a name
  std::string id;
  std::getline(boot, id);
  return fmt::format("{}-{}", name.data(), id);
}

using Body = std::function<void(Communicator& world, const RankEnvironment&)>;

void run_mpi_ranks(Session& session, const Body& body) {
  MpiSession mpi(session.argc, session.argv);
  Communicator& world = mpi.world();
  try {
    const RankEnvironment environment{.local_rank = mpi.local_rank(),
                                      .local_size = mpi.local_size(),
                                      .host_id = host_id(),
                                      .threads_per_rank = threads_of_rank(world, mpi.local_size())};
    body(world, environment);
  } catch (const SharedError& error) {
    // Every rank is here with the same code: end in order, after MPI_Finalize.
    const ExitCode code = report_failure(std::current_exception());
    throw SharedError(Error(code, error.text()), error.rank(), false);
  } catch (...) {
    // This rank alone: the others may be waiting for it.
    const ExitCode code = report_failure(std::current_exception());
    world.abort(code, "");
    std::_Exit(static_cast<int>(code));
  }
}

void run_thread_ranks(int ranks, const Body& body) {
  const int threads = share_of(own_cores(), ranks);
  run_local_ranks(ranks, [&](Communicator& world) {
    try {
      body(world, {.local_rank = world.rank(),
                   .local_size = ranks,
                   .host_id = host_id(),
                   .threads_per_rank = threads});
    } catch (const SharedError& error) {
      // Which rank's error comes out of run_local_ranks is not said: print the right one here.
      if (error.report()) report_failure(std::current_exception());
      throw SharedError(error, error.rank(), false);
    }
  });
}

}  // namespace

void run_ranks(Session& session, int local_ranks, const Body& body) {
  refuse_tasks_without_mpi();
  if (local_ranks > 0 && started_by_mpi())
    throw SharedError(Error(ExitCode::kUsage,
                            {.what = "--local-ranks was given to a program that mpirun started",
                             .where = "command line",
                             .fix = "use one of the two: mpirun -np N farspan ..., or farspan ... "
                                    "--local-ranks N"}),
                      0, is_first_process());
  if (started_by_mpi()) return run_mpi_ranks(session, body);
  if (local_ranks > 1) return run_thread_ranks(local_ranks, body);
  const std::unique_ptr<Communicator> world = make_self_communicator();
  body(*world, {.host_id = host_id(), .threads_per_rank = share_of(own_cores(), 1)});
}

void run_ranks(Session& session, int local_ranks, const std::function<void()>& check,
               const Body& body) {
  try {
    check();
  } catch (const Error& error) {
    throw SharedError(error, 0, is_first_process());
  }
  run_ranks(session, local_ranks, body);
}

}  // namespace farspan::app
