// One collective on its way: a schedule's transfers, and beside them the headers by which the ranks
// agree that they call the same thing.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "comm/call.h"
#include "comm/link.h"
#include "comm/schedule.h"
#include "comm/shared_error.h"

namespace farspan {

// What a communicator remembers of its calls: counters, the last call, scratch for reuse.
// Thread-safe.
class Ledger {
 public:
  void began(const Call& call);
  void sent(Collective kind, std::size_t bytes);
  CommCounters counters() const;
  void reset_counters();
  std::string last_operation() const;

  std::vector<std::byte> take_scratch(std::size_t bytes);
  void give_scratch(std::vector<std::byte> scratch);

 private:
  struct Cell {
    std::atomic<std::int64_t> calls{0};
    std::atomic<std::int64_t> bytes_sent{0};
  };
  std::array<Cell, kNumCollectives> cells_;
  mutable std::mutex mutex_;
  Call last_;
  std::vector<std::vector<std::byte>> scratch_;
};

// A call with its schedule and the sizes that this rank states to, and expects of, its peers
// (shift and exchange; Call::kUnstated elsewhere).
struct Plan {
  struct Stated {
    int peer;
    std::int64_t bytes;
  };
  Call call;
  std::unique_ptr<Schedule> schedule;
  std::vector<Stated> to, from;  // besides the neighbours on the ring; a peer at most once each
};

class Operation {
 public:
  Operation(std::shared_ptr<Link> link, std::shared_ptr<Ledger> ledger, Plan plan);
  Operation(const Operation&) = delete;
  Operation& operator=(const Operation&) = delete;
  ~Operation();

  // Moves as far as it goes now; true when finished (or failed). A second thread returns at once.
  bool advance();
  bool finished() const { return finished_.load(std::memory_order_acquire); }
  // Whether it goes on once a device has done something, of which nobody tells.
  bool awaits_device() const { return awaits_device_.load(std::memory_order_relaxed); }
  // Throws the error of an operation that has failed. After finished() only.
  void rethrow() const;
  // After finished() without an error, on the owner's thread.
  void arrive() { plan_.schedule->arrive(); }
  // Gives up an unfinished operation whose owner unwinds, and the job with it.
  void abandon() noexcept;

 private:
  void open();
  void step();
  bool check_calls();
  void check_peers();
  void advance_data();
  bool begin_phase();
  void close() noexcept;
  void fail(const SharedError& error) noexcept;

  const std::shared_ptr<Link> link_;
  const std::shared_ptr<Ledger> ledger_;
  Plan plan_;

  std::mutex mutex_;  // guards what follows
  std::vector<Call> calls_out_, calls_in_;
  std::vector<bool> calls_checked_;
  std::size_t num_unchecked_ = 0;
  std::unique_ptr<Flight> calls_;  // sends, then receives
  std::vector<std::byte> scratch_;
  std::vector<Transfer> transfers_;
  std::unique_ptr<Flight> data_;
  int phase_ = 0;
  bool opened_ = false;
  bool phase_begun_ = false;
  bool data_done_ = false;
  std::optional<SharedError> error_;
  std::atomic<bool> missed_{false};  // another thread found the mutex taken
  std::atomic<bool> awaits_device_{false};
  std::atomic<bool> finished_{false};
};

}  // namespace farspan
