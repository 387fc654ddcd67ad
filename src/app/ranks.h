// How a command's ranks come to be: `--local-ranks N` (threads), mpirun (processes) or one rank.
#pragma once

#include <functional>
#include <string>

#include "app/command.h"
#include "app/environment.h"
#include "comm/communicator.h"

namespace farspan::app {

struct RankEnvironment {
  int local_rank = 0;        // place among the ranks of this machine
  int local_size = 1;        // ranks on this machine
  std::string host_id;       // tells machines apart, as NCCL does: NCCL_HOSTID where that is set
  int threads_per_rank = 1;  // OMP_NUM_THREADS if set, else cores / local_size, at least 1
};

// Runs `body` once per rank; returns when all ranks have ended. `local_ranks` 0: not given.
// Under MPI an error of one rank is printed by that rank alone and ends the job with its exit code;
// a SharedError (comm/agree.h) is printed once and thrown on, already reported, on every rank.
void run_ranks(Session& session, int local_ranks,
               const std::function<void(Communicator& world, const RankEnvironment&)>& body);

// The same after `check`, which looks at what every process of an MPI job knows: the first says
// what is wrong.
void run_ranks(Session& session, int local_ranks, const std::function<void()>& check,
               const std::function<void(Communicator& world, const RankEnvironment&)>& body);

}  // namespace farspan::app
