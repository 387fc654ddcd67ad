// Ends a rank that hangs. A thread watches which part of the run this rank is in; when one takes
// longer than its limit, the rank says where it stands (with its last collective), aborts the job,
// and leaves with exit code 6 even if the abort hangs too.
//
//   Watchdog watchdog({.rank = world.rank(),
//                      .last_operation = [&] { return world.last_operation(); },
//                      .abort = [&](std::string_view why) {
//                        world.abort(ExitCode::kCommunication, why); }});
//   { auto section = watchdog.enter(Watchdog::Phase::kStep, step); run_step(); }
//
// On expiry the watchdog's thread prints one message on standard error, calls `abort` from another
// thread (so `abort` and `last_operation` must be safe beside the rank's own thread), and after
// `hard_deadline` seconds calls _exit(6). If the abort makes the hanging call throw instead (thread
// ranks), the rank unwinds, destroys its Watchdog in time, and the program ends in the usual way.
//
// Time in which this process did not run (SIGSTOP, a suspended machine) is not held against it:
// another rank that waits for it reports it instead.
#pragma once

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>

namespace farspan {

// Seconds that each part may take; 0: no limit. Far above what a healthy run needs, since a false
// alarm costs more than a late one.
struct WatchdogTimeouts {
  double init = 1800;  // start, loading a checkpoint
  double data = 600;   // waiting for a batch
  double step = 1800;  // one optimizer step
  double eval = 3600;  // one evaluation
  double save = 1800;  // waiting for a checkpoint to be written
};

struct WatchdogOptions {
  int rank = 0;
  WatchdogTimeouts timeouts{};
  double hard_deadline = 30;                          // seconds from expiry to _exit
  std::function<std::string()> last_operation{};      // "all_reduce #1234, 4096 bytes"
  std::function<void(std::string_view why)> abort{};  // ends the whole job
  // For tests; by default standard error and ::_exit.
  std::function<void(std::string_view)> print{};
  std::function<void(int)> exit{};
};

class Watchdog {
 public:
  enum class Phase : std::uint8_t { kInit, kData, kStep, kEval, kSave };

  class [[nodiscard]] Section {
   public:
    Section(const Section&) = delete;
    Section& operator=(const Section&) = delete;
    ~Section();

   private:
    friend class Watchdog;
    struct Outer {
      bool active = false;
      Phase phase{};
      std::int64_t step = 0;
      std::chrono::steady_clock::duration spent{};
    };
    Section(Watchdog& watchdog, Outer outer) : watchdog_(watchdog), outer_(outer) {}
    Watchdog& watchdog_;
    Outer outer_;
  };

  explicit Watchdog(WatchdogOptions options);
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;
  ~Watchdog();

  // This rank is now in `phase`, until the section ends. A section inside another one has a clock
  // of its own; the outer one's stands still meanwhile. Outside all sections nothing is watched.
  Section enter(Phase phase, std::int64_t step);

 private:
  using Clock = std::chrono::steady_clock;

  double limit_of(Phase phase) const;
  void leave(const Section::Outer& outer);
  void run();
  void expire(std::unique_lock<std::mutex>& lock);
  std::string message(double seconds) const;

  WatchdogOptions options_;
  std::chrono::milliseconds poll_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool stop_ = false;
  bool active_ = false;
  Phase phase_{};
  std::int64_t step_ = 0;
  Clock::time_point since_{};
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace farspan
