// The operations of one rank that are under way, on all its communicators, and the wait for one of
// them. Any thread that waits moves all of them: all_reduce needs local work between its phases, so
// a rank that waits for one operation must not hold up the others (ranks may wait in any order).
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace farspan {

class Operation;

class Engine {
 public:
  virtual ~Engine() = default;
  void start(const std::shared_ptr<Operation>& operation);
  // Blocks until the operation has finished; throws its error.
  void wait(Operation& operation);
  // Moves every operation as far as it goes now. True when one of them waits for a device: then
  // nobody calls changed() when it can go on.
  bool poll();
  // Lets go of an operation, finished or abandoned: it keeps this engine alive otherwise.
  void remove(const Operation& operation);
  // Something happened that rest() waits for.
  virtual void changed() {}

 protected:
  // A number that differs after changed().
  virtual std::uint64_t ticket() const { return 0; }
  // Called by a waiter after the poll that followed ticket() and returned `device`. `round` counts
  // from 0 in each wait.
  virtual void rest(std::uint64_t ticket, std::int64_t round, bool device) = 0;
  // An operation was added; called with mutex_ held.
  virtual void added() {}

  std::mutex mutex_;
  std::vector<std::shared_ptr<Operation>> active_;
  std::atomic<int> num_waiters_{0};
};

}  // namespace farspan
