// Work done ahead on a background thread: make(first), make(first + 1), ... in order, at most
// `depth` results waiting.
//
//   Prefetcher<Batch> batches([&](std::int64_t i) { return reader.make_batch(...); }, step, 2);
//   Batch b = batches.next();        // make(step); then make(step + 1), ...
//   batches.restart(other);          // forget what was made, continue at `other`
//
// An exception in make(i) is rethrown by the call of next() that would have returned result i, and
// by every later one until restart(). `make` runs on one thread at a time; the destructor waits for
// a call under way and drops the rest.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <limits>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "core/error.h"

namespace farspan {

template <typename T>
class Prefetcher {
 public:
  using Make = std::function<T(std::int64_t index)>;

  // `depth` >= 1 results are kept ready. Results end before index `end`.
  Prefetcher(Make make, std::int64_t first, int depth,
             std::int64_t end = std::numeric_limits<std::int64_t>::max())
      : make_(std::move(make)), depth_(depth), end_(end), to_make_(first), to_return_(first) {
    FARSPAN_CHECK(depth >= 1, "depth {}", depth);
    thread_ = std::thread([this] { run(); });
  }
  ~Prefetcher() {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    thread_.join();
  }
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;

  // Blocks until the next result is ready.
  T next() {
    std::unique_lock lock(mutex_);
    FARSPAN_CHECK(to_return_ < end_, "result {} of {}", to_return_, end_);
    ready_.wait(lock, [this] { return !queue_.empty() || error_; });
    if (queue_.empty()) std::rethrow_exception(error_);
    T out = std::move(queue_.front());
    queue_.pop_front();
    ++to_return_;
    lock.unlock();
    wake_.notify_all();
    return out;
  }

  // The next result will be make(index). A result being made is finished and dropped.
  void restart(std::int64_t index) {
    {
      std::lock_guard lock(mutex_);
      queue_.clear();
      error_ = nullptr;
      to_make_ = to_return_ = index;
      ++generation_;
    }
    wake_.notify_all();
  }

  // Index of the result that next() returns.
  std::int64_t next_index() const {
    std::lock_guard lock(mutex_);
    return to_return_;
  }
  // Results that wait to be taken: 0 means that the consumer is the faster one.
  int ready() const {
    std::lock_guard lock(mutex_);
    return static_cast<int>(queue_.size());
  }

 private:
  bool may_work() const {
    return !error_ && to_make_ < end_ && static_cast<int>(queue_.size()) < depth_;
  }

  void run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return stop_ || may_work(); });
      if (stop_) return;
      const std::int64_t index = to_make_++;
      const std::uint64_t generation = generation_;
      lock.unlock();
      std::exception_ptr error;
      std::optional<T> made;
      try {
        made.emplace(make_(index));
      } catch (...) {
        error = std::current_exception();
      }
      lock.lock();
      if (generation != generation_) continue;  // restarted meanwhile
      if (error)
        error_ = error;
      else
        queue_.push_back(std::move(*made));
      ready_.notify_all();
    }
  }

  Make make_;
  int depth_;
  std::int64_t end_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;   // the worker: room, restart or stop
  std::condition_variable ready_;  // the consumer: a result or an error
  std::deque<T> queue_;
  std::exception_ptr error_;
  std::int64_t to_make_;
  std::int64_t to_return_;
  std::uint64_t generation_ = 0;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace farspan
