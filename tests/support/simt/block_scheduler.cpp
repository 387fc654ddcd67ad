#include "support/simt/block_scheduler.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <numeric>
#include <utility>

#include "core/error.h"
#include "support/simt/sanitizers.h"
#include "support/simt/symbols.h"

namespace farspan::simt {

ThreadView* running_thread = nullptr;
BlockView running_block;
Block the_block;

namespace {

// For signals, which may find another host thread at work.
thread_local bool runs_a_kernel = false;

uint3 unflatten(std::uint64_t i, const dim3& extents) {
  const std::uint64_t row = i / extents.x;
  return {static_cast<unsigned>(i % extents.x), static_cast<unsigned>(row % extents.y),
          static_cast<unsigned>(row / extents.y)};
}

// A set bit of `bits`, which has one, at random.
int any_bit(std::uint32_t bits, Disorder& disorder) {
  const int turn = static_cast<int>(disorder.below(32));
  return (std::countr_zero(std::rotr(bits, turn)) + turn) % 32;
}

void enter_fiber() {
  finish_switch(nullptr);
  the_block.threads_of_fiber();
}

}  // namespace

Block::Block() : fibers_(enter_fiber) {}

bool this_thread_runs_a_kernel() { return runs_a_kernel; }
std::string text_of(const uint3& v) { return fmt::format("({}, {}, {})", v.x, v.y, v.z); }
std::uint64_t volume(const dim3& d) { return std::uint64_t{d.x} * d.y * d.z; }

std::string Block::place() const {
  return fmt::format("kernel {}, block {} of {}, thread {} of {}", symbol_name(run_->kernel),
                     text_of(running_block.index),
                     text_of({run_->grid.x, run_->grid.y, run_->grid.z}),
                     running_thread == nullptr ? "none" : text_of(running_thread->index),
                     text_of({run_->block.x, run_->block.y, run_->block.z}));
}

void Block::begin(std::uint64_t index) {
  num_threads_ = static_cast<std::uint32_t>(volume(run_->block));
  const std::uint32_t num_warps = (num_threads_ + kWarpSize - 1) / kWarpSize;
  if (threads_.size() < num_threads_) threads_.resize(num_threads_);
  warps_.assign(num_warps, {});
  warp_order_.resize(num_warps);
  std::iota(warp_order_.begin(), warp_order_.end(), 0u);
  for (std::uint32_t i = 0; i < num_threads_; ++i) {
    Thread& t = threads_[i];
    t.index = unflatten(i, run_->block);
    t.number = i;
    t.lane = i % kWarpSize;
    t.state = State::kNew;
    t.fiber = nullptr;
    t.copies.clear();
    warp_of(t).alive |= 1u << t.lane;
  }
  ready_warps_ = 0;
  for (std::uint32_t w = 0; w < num_warps; ++w) {
    warps_[w].ready = warps_[w].alive;
    ready_warps_ |= 1u << w;
  }
  live_ = num_threads_;
  at_barrier_ = 0;
  barrier_sum_ = 0;
  failure_.clear();
  running_block.index = unflatten(index, run_->grid);
  running_block.block_dim = run_->block;
  running_block.grid_dim = run_->grid;
  new_order();
}

void Block::run(const KernelRun& run, std::uint64_t index, std::uint64_t launch_seed) {
  run_ = &run;
  disorder_ = Disorder(launch_seed + index * 0x9e3779b97f4a7c15u);
  begin(index);
  host_ = host_context();
  runs_a_kernel = true;
  Thread* const first = pick();
  resume(host_, *first);
  std::string failure = std::move(failure_);
  if (!failure.empty()) {
    for (std::uint32_t i = 0; i < num_threads_; ++i)
      if (Fiber* const fiber = std::exchange(threads_[i].fiber, nullptr)) {
        fiber->restart();
        fibers_.give(*fiber);
      }
  }
  runs_a_kernel = false;
  running_thread = nullptr;
  run_ = nullptr;
  if (!failure.empty()) throw Error(ExitCode::kInternal, {.what = failure});
}

// Who may overtake whom until the next barrier: all warps of each other, lane by lane; or a warp
// runs until it waits before another starts, which lets it be as far ahead as barriers allow.
void Block::new_order() {
  one_warp_at_a_time_ = disorder_.one_in(2);
  for (std::size_t i = warp_order_.size(); i > 1; --i)
    std::swap(warp_order_[i - 1], warp_order_[disorder_.below(i)]);
}

void Block::make_ready(Thread& t) {
  t.state = State::kReady;
  warp_of(t).ready |= 1u << t.lane;
  ready_warps_ |= 1u << (t.number / kWarpSize);
}

// Takes a thread that can go on; nullptr where there is none.
Thread* Block::pick() {
  if (ready_warps_ == 0) return nullptr;
  std::uint32_t w = 0;
  if (one_warp_at_a_time_)
    w = *std::find_if(warp_order_.begin(), warp_order_.end(),
                      [&](std::uint32_t i) { return warps_[i].ready != 0; });
  else
    w = static_cast<std::uint32_t>(any_bit(ready_warps_, disorder_));
  Warp& warp = warps_[w];
  const int l = any_bit(warp.ready, disorder_);
  warp.ready &= ~(1u << l);
  if (warp.ready == 0) ready_warps_ &= ~(1u << w);
  return &lane(w, l);
}

void Block::resume(Context& from, Thread& t) {
  running_thread = &t;
  if (t.state == State::kNew) t.fiber = &fibers_.take();
  switch_to(from, t.fiber->context);
}

// The running thread waits; others go on until it is its turn again.
void Block::block_running() {
  Thread& me = running();
  Thread* const next = pick();
  if (next == nullptr) end(deadlock());
  if (next == &me) return;
  resume(me.fiber->context, *next);
}

// The life of a fiber: threads of blocks, one after the other.
void Block::threads_of_fiber() {
  for (;;) {
    Thread& me = running();
    Fiber& fiber = *me.fiber;
    try {
      me.state = State::kReady;
      run_->invoke(run_->args);
      me.copies.finish_all(disorder_);
      leave();
    } catch (const Error& e) {
      failure_ = e.text().what;
    } catch (const std::exception& e) {
      failure_ = fmt::format("{}: {}", place(), e.what());
    }
    me.fiber = nullptr;
    Thread* const next = failure_.empty() && live_ > 0 ? pick() : nullptr;
    if (next == nullptr && failure_.empty() && live_ > 0)
      failure_ = fmt::format("{}: {}", place(), deadlock());
    if (next != nullptr && next->state == State::kNew) {  // on this same stack
      next->fiber = &fiber;
      running_thread = next;
      continue;
    }
    fibers_.give(fiber);
    if (next == nullptr)
      switch_to(fiber.context, host_);
    else
      resume(fiber.context, *next);
  }
}

// The running thread has left the kernel: who waited for it alone goes on.
void Block::leave() {
  Thread& me = running();
  me.state = State::kDone;
  Warp& warp = warp_of(me);
  warp.alive &= ~(1u << me.lane);
  --live_;
  if (warp.waiting != 0) {
    const std::uint32_t w = me.number / kWarpSize;
    for (std::uint32_t left = warp.waiting; left != 0; left &= left - 1) {
      const Thread& other = lane(w, std::countr_zero(left));
      if ((other.mask >> me.lane & 1u) == 0 || (warp.waiting >> other.lane & 1u) == 0) continue;
      if (other.needs_all)
        fail(
            fmt::format("this thread left while lane {} of its warp is at {}, which needs every "
                        "lane",
                        other.lane, other.call));
      try_complete(other);
    }
  }
  release_barrier();
}

bool Block::release_barrier() {
  if (live_ == 0 || at_barrier_ != live_) return false;
  at_barrier_ = 0;
  barrier_result_ = std::exchange(barrier_sum_, 0);
  for (std::uint32_t i = 0; i < num_threads_; ++i)
    if (threads_[i].state == State::kAtBarrier) make_ready(threads_[i]);
  new_order();
  return true;
}

int Block::barrier(int predicate) {
  Thread& me = running();
  me.copies.drift(disorder_);
  me.state = State::kAtBarrier;
  ++at_barrier_;
  barrier_sum_ += predicate != 0 ? 1 : 0;
  release_barrier();
  block_running();
  return barrier_result_;
}

void Block::require_agreement(const Thread& t, const Thread& other) {
  if (other.complete == t.complete && other.mask == t.mask) return;
  fail(fmt::format(
      "lane {} is at {} with mask {:#010x} while lane {} of its warp is at {} with mask "
      "{:#010x}",
      t.lane, t.call, t.mask, other.lane, other.call, other.mask));
}

// Completes the warp instruction that `t` waits at if nobody is missing.
void Block::try_complete(const Thread& t) {
  Warp& warp = warp_of(t);
  const std::uint32_t w = t.number / kWarpSize, lanes = t.mask & warp.alive;
  const Complete complete = t.complete;
  if ((warp.waiting & lanes) != lanes) return;
  WarpCall call{.lanes = lanes, .args = {}};
  for (std::uint32_t left = lanes; left != 0; left &= left - 1) {
    Thread& other = lane(w, std::countr_zero(left));
    require_agreement(t, other);
    call.args[other.lane] = other.args;
  }
  complete(call);
  warp.waiting &= ~lanes;
  for (std::uint32_t left = lanes; left != 0; left &= left - 1)
    make_ready(lane(w, std::countr_zero(left)));
}

void Block::warp_call(const Waiting& call) {
  Thread& me = running();
  static_cast<Waiting&>(me) = call;
  Warp& warp = warp_of(me);
  if ((me.mask >> me.lane & 1u) == 0)
    fail(fmt::format("lane {} is not in the mask {:#010x} of its {}", me.lane, me.mask, me.call));
  if (me.needs_all && (me.mask & ~warp.alive) != 0)
    fail(fmt::format("{} needs lanes {:#010x} of the warp, of which only {:#010x} are there",
                     me.call, me.mask, warp.alive));
  if (const std::uint32_t there = warp.waiting & me.mask; there != 0) {
    const Thread& other = lane(me.number / kWarpSize, std::countr_zero(there));
    if ((other.mask >> me.lane & 1u) != 0) require_agreement(me, other);
  }
  me.state = State::kAtWarpCall;
  warp.waiting |= 1u << me.lane;
  try_complete(me);
  block_running();
}

std::string Block::deadlock() {
  std::string waiting;
  int named = 0, count = 0;
  for (std::uint32_t i = 0; i < num_threads_; ++i) {
    const Thread& t = threads_[i];
    if (t.state != State::kAtBarrier && t.state != State::kAtWarpCall) continue;
    ++count;
    if (named > 0 && i > 0 && threads_[i - 1].state == t.state && threads_[i - 1].call == t.call)
      continue;  // one of each run of equals
    if (++named > 6) continue;
    waiting += fmt::format("{}thread {} at {}", waiting.empty() ? "" : ", ", text_of(t.index),
                           t.state == State::kAtBarrier
                               ? std::string("__syncthreads")
                               : fmt::format("{} with mask {:#010x}", t.call, t.mask));
  }
  return fmt::format("deadlock: {} of {} threads wait and none can go on: {}", count, num_threads_,
                     waiting);
}

void Block::end(const std::string& what) {
  throw Error(ExitCode::kInternal, {.what = fmt::format("{}: {}", place(), what)});
}

void Block::abandon(const std::string& what) {
  failure_ = fmt::format("{}: {}", place(), what);
  switch_to(running().fiber->context, host_);
  std::abort();  // the fiber restarts
}

}  // namespace farspan::simt
