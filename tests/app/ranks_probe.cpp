// A program of ranks that end in a chosen way, for ranks_test: `ranks_probe MODE LOCAL_RANKS`.
#include <fmt/format.h>

#include <cstdio>
#include <new>
#include <string>

#include "app/ranks.h"
#include "app/report.h"
#include "comm/agree.h"

namespace {

using farspan::Communicator;
using farspan::Error;
using farspan::ExitCode;

void body(const std::string& mode, Communicator& world, const farspan::app::RankEnvironment& rank) {
  // One write a line: several processes share the terminal.
  const std::string line =
      fmt::format("rank {} of {} on {} threads {} local {}/{}\n", world.rank(), world.size(),
                  world.transport(), rank.threads_per_rank, rank.local_rank, rank.local_size);
  std::fwrite(line.data(), 1, line.size(), stdout);
  std::fflush(stdout);
  const int last = world.size() - 1;
  if (mode == "shared")
    farspan::together(world, [&] {
      if (world.rank() == last) throw Error(ExitCode::kBadData, {.what = "the store is damaged"});
    });
  if (mode == "everyone")
    farspan::together(world, [&] { throw Error(ExitCode::kUsage, {.what = "a wrong key"}); });
  if (mode == "alone" && world.rank() == last)
    throw Error(ExitCode::kExhausted, {.what = "the disk is full"});
  if (mode == "memory" && world.rank() == last) throw std::bad_alloc();
  world.barrier();
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "ok";
  const int local_ranks = argc > 2 ? std::stoi(argv[2]) : 0;
  farspan::app::Session session{.argc = &argc, .argv = &argv};
  try {
    farspan::app::run_ranks(session, local_ranks,
                            [&](Communicator& world, const farspan::app::RankEnvironment& rank) {
                              body(mode, world, rank);
                            });
    return session.exit_code;
  } catch (...) {
    return static_cast<int>(farspan::app::report_failure(std::current_exception()));
  }
}
