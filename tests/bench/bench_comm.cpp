// Latency, bandwidth and overlap of the CPU transports between two ranks, as a table.
//
//   build/cpu/bench_comm                                  two threads
//   mpirun -np 2 build/cpu/bench_comm --mpi               two processes
//   mpirun -np 2 build/cpu/bench_comm --mpi --no-progress without the progress thread
//   ... --oversubscribed                                  the overlap with two busy threads per
//   rank
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <string_view>
#include <thread>
#include <vector>

#include "comm/factory.h"

namespace farspan {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// The fastest of five batches, in seconds per call: the machine's other work only adds.
double time_of(Communicator& world, int calls, const std::function<void()>& call) {
  double best = 1e9;
  for (int batch = 0; batch < 5; ++batch) {
    world.barrier();
    const auto begin = Clock::now();
    for (int i = 0; i < calls; ++i) call();
    best = std::min(best, seconds_since(begin) / calls);
  }
  return best;
}

// Arithmetic in registers for about `seconds`; thousands of steps done.
double compute(double seconds) {
  const auto begin = Clock::now();
  [[maybe_unused]] volatile double sink = 0;
  double x = 1.0;
  int thousands = 0;
  do {
    for (int i = 0; i < 1000; ++i) x = x * 0.999999 + 1e-6;
    ++thousands;
  } while (seconds_since(begin) < seconds);
  sink = x;
  return thousands;
}

void transfers(Communicator& world) {
  Stream stream;
  const bool prints = world.rank() == 0;
  if (prints) std::printf("%-10s %12s %14s %14s\n", "transport", "bytes", "shift", "all_reduce");
  for (const std::int64_t bytes :
       {4LL, 1LL << 10, 16LL << 10, 256LL << 10, 4LL << 20, 64LL << 20}) {
    const std::int64_t n = bytes / 4;
    std::vector<float> a(static_cast<std::size_t>(n)), b(static_cast<std::size_t>(n));
    const Tensor out = host_tensor(a.data(), {n}), in = host_tensor(b.data(), {n});
    const int calls = bytes > (1 << 20) ? 10 : 500;
    const double shift =
        time_of(world, calls, [&] { world.shift({.send = out, .recv = in}, stream).wait(); });
    const double reduce =
        time_of(world, calls, [&] { world.all_reduce(out, ReduceOp::kMax, stream).wait(); });
    if (!prints) continue;
    const double gb = static_cast<double>(bytes) * 1e-9;
    if (bytes > 65536)
      std::printf("%-10s %12lld %9.2f GB/s %9.2f GB/s\n", std::string(world.transport()).c_str(),
                  static_cast<long long>(bytes), gb / shift, gb / reduce);
    else
      std::printf("%-10s %12lld %11.2f us %11.2f us\n", std::string(world.transport()).c_str(),
                  static_cast<long long>(bytes), shift * 1e6, reduce * 1e6);
  }
  const double barrier = time_of(world, 500, [&] { world.barrier(); });
  if (prints) std::printf("%-10s %12s %11.2f us\n", "", "barrier", barrier * 1e6);
}

// What of a shift of 4 MiB remains to be waited for behind 20 ms of compute, and what it costs the
// compute.
void overlap(Communicator& world, bool oversubscribed) {
  Stream stream;
  const std::int64_t n = 1 << 20;
  std::vector<float> a(static_cast<std::size_t>(n)), b(static_cast<std::size_t>(n));
  const Tensor out = host_tensor(a.data(), {n}), in = host_tensor(b.data(), {n});
  constexpr double kCompute = 0.020;
  std::vector<double> exposed, blocking, alone, beside;
  for (int i = 0; i < 40; ++i) {
    world.barrier();
    auto begin = Clock::now();
    world.shift({.send = out, .recv = in}, stream).wait();
    blocking.push_back(seconds_since(begin));
    world.barrier();
    alone.push_back(compute(kCompute));
    world.barrier();
    Pending p = world.shift({.send = out, .recv = in}, stream);
    std::thread second;
    if (oversubscribed) second = std::thread([] { compute(kCompute); });
    beside.push_back(compute(kCompute));
    if (second.joinable()) second.join();
    begin = Clock::now();
    p.wait();
    exposed.push_back(seconds_since(begin));
  }
  for (auto* list : {&exposed, &blocking, &alone, &beside}) std::sort(list->begin(), list->end());
  if (world.rank() == 0)
    std::printf(
        "4 MiB shift: blocking %.0f us; behind 20 ms of compute %.0f us (median of 40; 90%% %.0f "
        "us), which runs at %.3f of its speed\n",
        blocking[20] * 1e6, exposed[20] * 1e6, exposed[36] * 1e6, beside[20] / alone[20]);
}

}  // namespace
}  // namespace farspan

int main(int argc, char** argv) {
  bool mpi = false, oversubscribed = false;
  farspan::MpiOptions options;
  for (int i = 1; i < argc; ++i) {
    const std::string_view arg = argv[i];
    mpi |= arg == "--mpi";
    oversubscribed |= arg == "--oversubscribed";
    if (arg == "--no-progress") options.progress_thread = false;
  }
  const auto run = [&](farspan::Communicator& world) {
    farspan::transfers(world);
    farspan::overlap(world, oversubscribed);
  };
  if (mpi) {
    farspan::MpiSession session(&argc, &argv, options);
    run(session.world());
  } else {
    farspan::run_local_ranks(2, run);
  }
  return 0;
}
