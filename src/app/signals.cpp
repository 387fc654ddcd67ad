#include "app/signals.h"

#include <unistd.h>

#include <atomic>
#include <cerrno>

#include "core/error.h"

namespace farspan::app {
namespace {

// A signal handler gets no argument of ours, so this is the one place with static state.
std::atomic<int> first_signal{0};
std::atomic<int> interrupts{0};
std::atomic<bool> announce_stop{false};
std::atomic<bool> installed{false};
static_assert(std::atomic<int>::is_always_lock_free, "a signal handler may use lock-free atomics");

constexpr std::string_view kStopping =
    "\nstopping after this step, with a checkpoint; Ctrl-C again stops at once, without one\n";

// Only async-signal-safe calls (signal-safety(7)).
void handle(int signal) {
  const int saved_errno = errno;
  if (signal == SIGINT && interrupts.fetch_add(1) > 0) ::_exit(128 + SIGINT);
  int none = 0;
  if (first_signal.compare_exchange_strong(none, signal) && announce_stop.load()) {
    // A terminal that is gone cannot be told.
    [[maybe_unused]] const ssize_t n = ::write(STDERR_FILENO, kStopping.data(), kStopping.size());
  }
  errno = saved_errno;
}

}  // namespace

StopRequest::StopRequest(Options options) {
  FARSPAN_CHECK(!installed.exchange(true), "two StopRequest objects");
  first_signal = 0;
  interrupts = 0;
  announce_stop = options.announce;
  struct sigaction action {};
  action.sa_handler = handle;
  action.sa_flags = SA_RESTART;  // reads and writes under way must not fail with EINTR
  sigemptyset(&action.sa_mask);
  for (std::size_t i = 0; i < kSignals.size(); ++i)
    FARSPAN_CHECK(::sigaction(kSignals[i], &action, &former_[i]) == 0);
}

StopRequest::~StopRequest() {
  for (std::size_t i = 0; i < kSignals.size(); ++i) ::sigaction(kSignals[i], &former_[i], nullptr);
  installed = false;
}

int StopRequest::signal() const { return first_signal.load(); }

std::string_view StopRequest::signal_name() const {
  switch (signal()) {
    case SIGUSR1:
      return "SIGUSR1";
    case SIGTERM:
      return "SIGTERM";
    case SIGINT:
      return "SIGINT";
    default:
      return "";
  }
}

}  // namespace farspan::app
