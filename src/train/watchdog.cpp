#include "train/watchdog.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>

#include "core/error.h"

namespace farspan {
namespace {

using Seconds = std::chrono::duration<double>;

constexpr std::array<const char*, 5> kPhaseNames = {"init", "data", "step", "eval", "save"};

void print_to_stderr(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
}

// Short enough for the shortest limit, long enough to cost nothing.
std::chrono::milliseconds poll_interval(const WatchdogTimeouts& t) {
  double shortest = 1.0;
  for (double limit : {t.init, t.data, t.step, t.eval, t.save})
    if (limit > 0) shortest = std::min(shortest, limit / 4);
  return std::chrono::milliseconds(std::clamp(std::lround(1000 * shortest), 5L, 250L));
}

}  // namespace

Watchdog::Section::~Section() { watchdog_.leave(outer_); }

Watchdog::Watchdog(WatchdogOptions options)
    : options_(std::move(options)), poll_(poll_interval(options_.timeouts)) {
  if (!options_.print) options_.print = print_to_stderr;
  if (!options_.exit) options_.exit = [](int code) { ::_exit(code); };
  thread_ = std::thread([this] { run(); });
}

Watchdog::~Watchdog() {
  {
    const std::scoped_lock lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

double Watchdog::limit_of(Phase phase) const {
  const WatchdogTimeouts& t = options_.timeouts;
  return std::array{t.init, t.data, t.step, t.eval, t.save}[static_cast<std::size_t>(phase)];
}

Watchdog::Section Watchdog::enter(Phase phase, std::int64_t step) {
  const std::scoped_lock lock(mutex_);
  const auto now = Clock::now();
  const Section::Outer outer{active_, phase_, step_, now - since_};
  active_ = true;
  phase_ = phase;
  step_ = step;
  since_ = now;
  return Section(*this, outer);
}

void Watchdog::leave(const Section::Outer& outer) {
  const std::scoped_lock lock(mutex_);
  active_ = outer.active;
  phase_ = outer.phase;
  step_ = outer.step;
  since_ = Clock::now() - outer.spent;
}

void Watchdog::run() {
  std::unique_lock lock(mutex_);
  auto last = Clock::now();
  while (!stop_) {
    changed_.wait_for(lock, poll_);
    const auto now = Clock::now();
    // A gap far beyond the poll interval: this process was stopped, and its sections with it.
    if (now - last > poll_ + std::chrono::seconds(2)) since_ += now - last;
    last = now;
    if (stop_ || !active_) continue;
    const double limit = limit_of(phase_);
    if (limit > 0 && Seconds(now - since_).count() > limit) return expire(lock);
  }
}

std::string Watchdog::message(double seconds) const {
  std::string operation = "unknown";
  if (options_.last_operation) {
    try {
      operation = options_.last_operation();
    } catch (const std::exception& e) {
      operation = fmt::format("unknown ({})", e.what());
    }
  }
  const char* phase = kPhaseNames[static_cast<std::size_t>(phase_)];
  return fmt::format(
      "farspan: error: watchdog: rank {} has made no progress for {:.1f} s in section '{}' of step "
      "{}\n"
      "  where: last collective of this rank: {}\n"
      "  fix:   the rank that does not report this is the one that is stuck or gone: look at its "
      "machine, then start the run again, which resumes from its newest checkpoint (limit of this "
      "section: {:g} s)\n",
      options_.rank, seconds, phase, step_, operation, limit_of(phase_));
}

void Watchdog::expire(std::unique_lock<std::mutex>& lock) {
  const std::string text = message(Seconds(Clock::now() - since_).count());
  const std::string why =
      fmt::format("watchdog of rank {}: no progress in section '{}' of step {}", options_.rank,
                  kPhaseNames[static_cast<std::size_t>(phase_)], step_);
  const auto deadline =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(Seconds(options_.hard_deadline));
  lock.unlock();
  options_.print(text);
  bool aborted = false;  // guarded by mutex_
  std::thread aborter([&] {
    try {
      if (options_.abort) options_.abort(why);
    } catch (...) {  // the hard deadline follows anyway
    }
    const std::scoped_lock done(mutex_);
    aborted = true;
    changed_.notify_all();
  });
  lock.lock();
  const bool ended = changed_.wait_until(lock, deadline, [&] { return stop_ && aborted; });
  lock.unlock();
  if (!ended) options_.exit(static_cast<int>(ExitCode::kCommunication));
  aborter.join();
  lock.lock();
}

}  // namespace farspan
