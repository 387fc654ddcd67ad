// One way for MPI ranks to fail, by name: `mpirun -np 3 comm_mpi_failure kind`. Errors are treated
// as the program does: printed by the rank that reports; what is one rank's alone ends the job.
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <string_view>
#include <thread>
#include <vector>

#include "comm/agree.h"
#include "comm/factory.h"

namespace farspan {
namespace {

void fail(Communicator& world, std::string_view how) {
  Stream stream;
  const int rank = world.rank();
  std::vector<float> data(400000), out(400000);
  const auto floats = [&](std::int64_t n) { return host_tensor(data.data(), {n}); };
  const auto other_floats = [&](std::int64_t n) { return host_tensor(out.data(), {n}); };
  world.barrier();
  if (how == "kind") {
    if (rank == 0) return world.all_reduce(floats(1024), ReduceOp::kSum, stream).wait();
    return world.barrier();
  }
  if (how == "size")  // beyond the eager limit on one side only
    return world.all_reduce(floats(rank == 1 ? 400000 : 12), ReduceOp::kSum, stream).wait();
  if (how == "order") {
    Pending p, q;
    if (rank == 2) p = world.broadcast(floats(400000), 0, stream);
    q = world.all_reduce(other_floats(400000), ReduceOp::kSum, stream);
    if (rank != 2) p = world.broadcast(floats(400000), 0, stream);
    p.wait();
    return q.wait();
  }
  if (how == "exchange") {
    std::vector<Message> sends, recvs;
    if (rank == 0) sends.push_back({.peer = 1, .buffer = floats(400000)});
    if (rank == 1) recvs.push_back({.peer = 0, .buffer = other_floats(100)});
    world.exchange(sends, recvs, stream).wait();
    return world.barrier();
  }
  if (how == "unknown_message") {
    std::vector<Message> recvs;
    if (rank == 1) recvs.push_back({.peer = 0, .buffer = other_floats(100)});
    return world.exchange({}, recvs, stream).wait();
  }
  if (how == "return") {
    if (rank == 1) return;
    return world.barrier();
  }
  if (how == "throw") {
    Pending p = world.shift({.send = floats(400000), .recv = other_floats(400000)}, stream);
    if (rank == 1) throw Error(ExitCode::kBadData, {.what = "the true reason"});
    p.wait();
    return world.barrier();
  }
  if (how == "kill") {
    if (rank == 1) raise(SIGKILL);
    return world.barrier();
  }
  if (how == "agree") return agree_on(world, "configuration", rank == 2 ? "b" : "a");
  if (how == "together")
    return together(world, [&] {
      if (rank >= 1) throw Error(ExitCode::kExhausted, {.what = "disk full"});
    });
  throw Error(ExitCode::kUsage, {.what = "no such failure"});
}

}  // namespace
}  // namespace farspan

int main(int argc, char** argv) try {
  farspan::MpiSession session(&argc, &argv);
  try {
    farspan::fail(session.world(), argc > 1 ? argv[1] : "");
  } catch (const farspan::SharedError& e) {
    if (e.report()) std::fprintf(stderr, "error: %s\n", e.what());
    throw;
  } catch (const farspan::Error& e) {
    std::fprintf(stderr, "error: %s\n", e.what());
    session.world().abort(e.code(), "");
  }
  return 0;
} catch (const farspan::SharedError& e) {
  return static_cast<int>(e.code());
}
