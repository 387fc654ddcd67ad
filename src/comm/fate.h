// Whether a job has failed, by which rank and why, and which rank's error is the one to print.
// Thread-safe. Thread ranks share one; every MPI process has its own and hears of the others'.
#pragma once

#include <atomic>
#include <mutex>
#include <string>

#include "comm/shared_error.h"

namespace farspan {

class Fate {
 public:
  bool failed() const { return failed_.load(); }

  // Rank `rank` fails. Only the first failure counts: false for later ones. `report`: a call of
  // that rank shall throw this error with report set (not if it throws one of its own already).
  bool fail(int rank, const ErrorText& text, ExitCode code, bool report) {
    const std::lock_guard lock(mutex_);
    if (failed()) return false;
    rank_ = rank;
    text_ = text;
    code_ = code;
    to_report_ = report;
    failed_ = true;
    return true;
  }

  // Another process's failure has been heard of. Of several, the lowest rank's counts.
  void hear(int rank, std::string what) {
    const std::lock_guard lock(mutex_);
    if (failed() && rank_ <= rank) return;
    rank_ = rank;
    text_ = {.what = std::move(what)};
    code_ = ExitCode::kCommunication;
    to_report_ = false;
    failed_ = true;
  }

  int rank() const {
    const std::lock_guard lock(mutex_);
    return rank_;
  }

  // Throws SharedError(kCommunication, report = false) when the job has failed.
  void check() const {
    if (!failed()) return;
    const std::lock_guard lock(mutex_);
    throw SharedError(Error(ExitCode::kCommunication,
                            {.what = text_.what, .where = fmt::format("rank {}", rank_)}),
                      rank_, false);
  }

  // Throws what a failed operation of rank `rank` shall throw: the job's error if it is this rank's
  // and has not been thrown yet, whichever operation met it, else `error` without report.
  [[noreturn]] void raise(int rank, const SharedError& error) {
    const std::lock_guard lock(mutex_);
    if (to_report_ && rank_ == rank) {
      to_report_ = false;
      throw SharedError(Error(code_, text_), rank, true);
    }
    throw SharedError(error, error.rank(), false);
  }

 private:
  std::atomic<bool> failed_{false};
  mutable std::mutex mutex_;
  int rank_ = -1;
  ErrorText text_;
  ExitCode code_ = ExitCode::kCommunication;
  bool to_report_ = false;
};

}  // namespace farspan
