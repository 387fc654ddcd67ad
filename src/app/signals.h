// Stopping on request: SIGUSR1 (batch systems, launchers), SIGTERM and SIGINT ask the run to end at
// the next step; it then saves a checkpoint and exits with 75 (resumable).
//
//   StopRequest stop({.announce = rank == 0});
//   while (step < steps && !stop.requested()) ...
//   log.info("stopping on {}", stop.signal_name());
//
// A second SIGINT (Ctrl-C pressed again) ends the process at once, with 130. One object may exist
// at a time; it restores the former handlers when it is destroyed. Ranks see the flag at different
// moments, so they must agree on the step at which they stop.
#pragma once

#include <signal.h>

#include <array>
#include <string_view>

namespace farspan::app {

class StopRequest {
 public:
  struct Options {
    // Say on standard error, when the signal arrives, that the run will stop after this step.
    bool announce = false;
  };

  explicit StopRequest(Options options);
  StopRequest(const StopRequest&) = delete;
  StopRequest& operator=(const StopRequest&) = delete;
  ~StopRequest();

  bool requested() const { return signal() != 0; }
  int signal() const;                    // the first one that came; 0: none
  std::string_view signal_name() const;  // "SIGUSR1"; "" for none

 private:
  static constexpr std::array<int, 3> kSignals = {SIGUSR1, SIGTERM, SIGINT};
  std::array<struct sigaction, kSignals.size()> former_{};
};

}  // namespace farspan::app
