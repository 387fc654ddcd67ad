#include "comm/communicator.h"

#include <cstdio>
#include <cstdlib>

namespace farspan {
namespace {

// A Pending that nobody waited on leaves a transfer running into memory that may be reused: there
// is no way on from here, and a destructor cannot throw.
[[noreturn]] void die_of_lost_pending() noexcept {
  std::fputs(
      "farspan: internal check failed: a Pending was destroyed or overwritten before wait()\n"
      "  fix:   this is a bug in Farspan; please report it\n",
      stderr);
  std::abort();
}

}  // namespace

std::string_view name_of(Collective collective) {
  switch (collective) {
    case Collective::kShift:
      return "shift";
    case Collective::kExchange:
      return "exchange";
    case Collective::kAllReduce:
      return "all_reduce";
    case Collective::kAllGather:
      return "all_gather";
    case Collective::kReduceScatter:
      return "reduce_scatter";
    case Collective::kAllToAll:
      return "all_to_all";
    case Collective::kBroadcast:
      return "broadcast";
    case Collective::kBarrier:
      return "barrier";
    case Collective::kSplit:
      return "split";
  }
  return "unknown";
}

std::int64_t CommCounters::total_bytes() const {
  std::int64_t sum = 0;
  for (const Entry& entry : by_collective) sum += entry.bytes_sent;
  return sum;
}

Pending& Pending::operator=(Pending&& other) noexcept {
  if (this != &other) {
    if (active()) die_of_lost_pending();
    finish_ = std::exchange(other.finish_, nullptr);
    unwinding_ = other.unwinding_;
  }
  return *this;
}

Pending::~Pending() {
  if (active() && std::uncaught_exceptions() <= unwinding_) die_of_lost_pending();
}

void Pending::wait() {
  const std::function<void()> finish = std::exchange(finish_, nullptr);
  if (finish) finish();
}

}  // namespace farspan
