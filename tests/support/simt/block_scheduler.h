// Who of a block's threads runs: states, barriers, warp instructions. The machinery behind
// kernel_view.h and block.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "support/simt/async_copies.h"
#include "support/simt/block.h"
#include "support/simt/fiber.h"
#include "support/simt/kernel_view.h"
#include "support/simt/random.h"

namespace farspan::simt {

enum class State : std::uint8_t { kNew, kReady, kAtWarpCall, kAtBarrier, kDone };

// The warp instruction that a thread waits at.
struct Waiting {
  const char* call = nullptr;
  std::uint32_t mask = 0;
  void* args = nullptr;
  Complete complete = nullptr;
  bool needs_all = false;
};

struct Thread : ThreadView, Waiting {
  State state = State::kNew;
  std::uint32_t number = 0;
  Fiber* fiber = nullptr;
  AsyncCopies copies;
};

struct Warp {
  std::uint32_t alive = 0, ready = 0, waiting = 0;
};

// The state of the block that runs. There is one: kernels reach it without an argument.
class Block {
 public:
  Block();
  void run(const KernelRun& run, std::uint64_t index, std::uint64_t launch_seed);
  int barrier(int predicate);
  void warp_call(const Waiting& call);
  [[noreturn]] void threads_of_fiber();
  [[noreturn]] void abandon(const std::string& what);
  Thread& running() { return static_cast<Thread&>(*running_thread); }
  std::string place() const;
  const Fiber* fiber() { return running().fiber; }
  Disorder& disorder() { return disorder_; }

 private:
  Warp& warp_of(const Thread& t) { return warps_[t.number / kWarpSize]; }
  Thread& lane(std::uint32_t warp, int l) { return threads_[warp * kWarpSize + l]; }
  void begin(std::uint64_t index);
  void make_ready(Thread& t);
  void new_order();
  Thread* pick();
  void block_running();
  void resume(Context& from, Thread& t);
  void leave();
  bool release_barrier();
  void try_complete(const Thread& t);
  void require_agreement(const Thread& t, const Thread& other);
  std::string deadlock();
  [[noreturn]] void end(const std::string& what);

  const KernelRun* run_ = nullptr;
  Disorder disorder_{0};
  FiberPool fibers_;
  Context host_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::uint32_t ready_warps_ = 0;
  std::uint32_t num_threads_ = 0, live_ = 0, at_barrier_ = 0;
  int barrier_sum_ = 0, barrier_result_ = 0;
  bool one_warp_at_a_time_ = false;
  std::vector<std::uint32_t> warp_order_;
  std::string failure_;
};

extern Block the_block;

bool this_thread_runs_a_kernel();
std::string text_of(const uint3& v);  // "(1, 0, 0)"
std::uint64_t volume(const dim3& d);

}  // namespace farspan::simt
