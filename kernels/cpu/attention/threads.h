// What the threads of an engine share: scratch memory of their own, and the turns in which they add
// to one sum.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "core/error.h"
#include "kernels/cpu/attention/kernel_table.h"

namespace farspan::cpu {

// Scratch memory of each thread, aligned to pages.
class Workspaces {
 public:
  Workspaces() = default;
  Workspaces(const Workspaces&) = delete;
  Workspaces& operator=(const Workspaces&) = delete;
  ~Workspaces() { std::free(base_); }

  void reserve(int num_threads, std::size_t bytes) {
    bytes = (bytes + kPage - 1) / kPage * kPage;
    if (bytes <= bytes_) return;
    std::free(base_);
    base_ = nullptr;
    bytes_ = 0;
    const std::size_t all = bytes * static_cast<std::size_t>(num_threads);
    base_ = static_cast<std::byte*>(std::aligned_alloc(kPage, all));
    if (base_ == nullptr)
      throw Error(ExitCode::kExhausted,
                  {.what = fmt::format("no memory for {} bytes of attention workspace", all),
                   .where = fmt::format("CPU backend, {} threads", num_threads),
                   .fix = "use fewer threads per rank or a machine with more memory"});
    bytes_ = bytes;
    // Tiles read (and drop) rows beyond the last one: they must at least be memory with contents.
    std::memset(base_, 0, all);
  }
  std::byte* of(int thread) const { return base_ + bytes_ * static_cast<std::size_t>(thread); }

 private:
  static constexpr std::size_t kPage = 4096;
  std::byte* base_ = nullptr;
  std::size_t bytes_ = 0;  // of one thread
};

// How many items of a block of rows or keys have finished. Written by the thread whose turn it is.
class Turns {
 public:
  void reset(Index count) {
    if (static_cast<std::size_t>(count) > done_.size())
      done_ = std::vector<std::atomic<std::int32_t>>(static_cast<std::size_t>(count));
    for (auto& turn : done_) turn.store(0, std::memory_order_relaxed);
  }
  void wait(Index i, std::int32_t turn) const {
    constexpr int kSpins = 2000;  // then give the core to whoever we wait for
    for (int n = 0; at(i).load(std::memory_order_acquire) != turn; ++n) {
      if (n > kSpins)
        std::this_thread::yield();
      else
        __builtin_ia32_pause();
    }
  }
  void finish(Index i, std::int32_t turn) {
    done_[static_cast<std::size_t>(i)].store(turn + 1, std::memory_order_release);
  }

 private:
  const std::atomic<std::int32_t>& at(Index i) const { return done_[static_cast<std::size_t>(i)]; }
  std::vector<std::atomic<std::int32_t>> done_;
};

}  // namespace farspan::cpu
