// How a command's ranks come to be: `--local-ranks N` (threads), mpirun (processes) or one rank.
#pragma once

#include <functional>
#include <string>

#include "app/command.h"
#include "comm/communicator.h"

namespace farspan::app {

struct RankEnvironment {
  int local_rank = 0;        // place among the ranks of this machine
  int local_size = 1;        // ranks on this machine
  int threads_per_rank = 1;  // OMP_NUM_THREADS if set, else cores / local_size, at least 1
};

// True when this process was started by mpirun (or srun with PMIx).
bool started_by_mpi();

// True in the one process of a job that may print what every process knows before MPI runs (a wrong
// option); also true where there is no MPI.
bool is_first_process();

// A variable of the environment; "" where it is not set. Only src/app reads any.
std::string environment_variable(const char* name);

// Runs `body` once per rank; returns when all ranks have ended. `local_ranks` 0: not given.
// Under MPI an error of one rank is printed by that rank alone and ends the job with its exit code;
// a SharedError (comm/agree.h) is printed once and thrown on, already reported, on every rank.
void run_ranks(Session& session, int local_ranks,
               const std::function<void(Communicator& world, const RankEnvironment&)>& body);

}  // namespace farspan::app
