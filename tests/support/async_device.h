// A device of its own time, for tests of everything that orders work between queues: each stream
// is a thread that does what it was given after random pauses, and memory of the device lies behind
// addresses that fault when the host touches them. What works because copies happen to be quick
// elsewhere fails here.
//
//   AsyncDevice device(seed);
//   auto stream = device.make_stream();
//   Buffer x = device.allocate(bytes);
//   device.copy(x.data(), host, bytes, *stream);                        // later
//   device.enqueue(*stream, [&] { ... device.reach(x.data()) ... });    // a kernel
//
// DeviceKind::kCuda, so that it stands where a GPU would. Host memory of any kind is read and
// written when the copy runs, not when it is asked for.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <random>
#include <thread>
#include <utility>

#include "core/device.h"

namespace farspan::testing {

class AsyncStream final : public Stream {
 public:
  explicit AsyncStream(std::uint64_t seed) : random_(seed), thread_([this] { run(); }) {}
  ~AsyncStream() override {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  AsyncStream(const AsyncStream&) = delete;
  AsyncStream& operator=(const AsyncStream&) = delete;

  void enqueue(std::function<void()> work) {
    {
      const std::lock_guard lock(mutex_);
      queue_.push_back(std::move(work));
    }
    changed_.notify_all();
  }
  void synchronize() override {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return queue_.empty() && !busy_; });
  }
  void* native_handle() const override { return const_cast<AsyncStream*>(this); }

 private:
  void run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return stop_ || !queue_.empty(); });
      if (queue_.empty()) return;  // what was asked for before the end is done
      const std::function<void()> work = std::move(queue_.front());
      queue_.pop_front();
      busy_ = true;
      const auto pause = std::chrono::microseconds(random_() % 4 == 0 ? random_() % 300 : 0);
      lock.unlock();
      if (pause.count() > 0) std::this_thread::sleep_for(pause);
      work();
      lock.lock();
      busy_ = false;
      changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> queue_;
  bool busy_ = false, stop_ = false;
  std::mt19937_64 random_;
  std::thread thread_;
};

class AsyncEvent final : public Event {
 public:
  void record(Stream& stream) override {
    auto mark = std::make_shared<Mark>();
    {
      const std::lock_guard lock(mutex_);
      mark_ = mark;
    }
    static_cast<AsyncStream&>(stream).enqueue([mark] { mark->set(); });
  }
  void order_before(Stream& stream) override {
    if (const auto mark = current())
      static_cast<AsyncStream&>(stream).enqueue([mark] { mark->wait(); });
  }
  bool reached() override {
    const auto mark = current();
    return mark == nullptr || mark->is_set();
  }
  void synchronize() override {
    if (const auto mark = current()) mark->wait();
  }

 private:
  struct Mark {
    void set() {
      {
        const std::lock_guard lock(mutex);
        done = true;
      }
      changed.notify_all();
    }
    void wait() {
      std::unique_lock lock(mutex);
      changed.wait(lock, [&] { return done; });
    }
    bool is_set() {
      const std::lock_guard lock(mutex);
      return done;
    }
    std::mutex mutex;
    std::condition_variable changed;
    bool done = false;
  };
  std::shared_ptr<Mark> current() {
    const std::lock_guard lock(mutex_);
    return mark_;
  }

  std::mutex mutex_;
  std::shared_ptr<Mark> mark_;
};

class AsyncDevice : public Device {
 public:
  explicit AsyncDevice(std::uint64_t seed = 1, int index = 0) : seed_(seed), index_(index) {}

  DeviceId id() const override { return {DeviceKind::kCuda, index_}; }
  std::string name() const override { return "asynchronous test device"; }
  std::string hardware_id() const override { return "test-" + std::to_string(index_); }

  Buffer allocate(std::size_t bytes) override {
    if (bytes == 0) return {};
    const std::size_t whole = (bytes + 4095) / 4096 * 4096;
    void* guarded = mmap(nullptr, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    void* real = mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    FARSPAN_CHECK(guarded != MAP_FAILED && real != MAP_FAILED);
    auto* const address = static_cast<std::byte*>(guarded);
    memory_->add(address, static_cast<std::byte*>(real), whole);
    return Buffer(address, bytes, id(), [memory = memory_, whole](std::byte* p, std::size_t) {
      munmap(memory->remove(p), whole);
      munmap(p, whole);
    });
  }
  // Counts what is alive.
  Buffer allocate_host(std::size_t bytes) override {
    auto* data = static_cast<std::byte*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
    pinned_->fetch_add(bytes);
    return Buffer(data, bytes, {DeviceKind::kCpu, 0},
                  [pinned = pinned_](std::byte* p, std::size_t n) {
                    std::free(p);
                    pinned->fetch_sub(n);
                  });
  }
  std::size_t pinned_bytes() const { return pinned_->load(); }

  void copy(std::byte* dst, const std::byte* src, std::size_t bytes, Stream& stream) override {
    enqueue(stream, [this, dst, src, bytes] { std::memcpy(reach(dst), reach(src), bytes); });
  }
  std::unique_ptr<Stream> make_stream() override {
    return std::make_unique<AsyncStream>(seed_ * 1000 + num_streams_++);
  }
  std::unique_ptr<Event> make_event() override { return std::make_unique<AsyncEvent>(); }

  static void enqueue(Stream& stream, std::function<void()> work) {
    static_cast<AsyncStream&>(stream).enqueue(std::move(work));
  }
  // Where the bytes of a device address really are; host addresses are their own.
  std::byte* reach(const std::byte* address) const { return memory_->reach(address); }

 private:
  class Memory {
   public:
    void add(std::byte* guarded, std::byte* real, std::size_t bytes) {
      const std::lock_guard lock(mutex_);
      blocks_[guarded] = {real, bytes};
    }
    std::byte* remove(std::byte* guarded) {
      const std::lock_guard lock(mutex_);
      std::byte* const real = blocks_.at(guarded).real;
      blocks_.erase(guarded);
      return real;
    }
    std::byte* reach(const std::byte* address) {
      const std::lock_guard lock(mutex_);
      auto it = blocks_.upper_bound(const_cast<std::byte*>(address));
      if (it != blocks_.begin()) {
        --it;
        const auto offset = static_cast<std::size_t>(address - it->first);
        if (offset < it->second.bytes) return it->second.real + offset;
      }
      return const_cast<std::byte*>(address);
    }

   private:
    struct Block {
      std::byte* real;
      std::size_t bytes;
    };
    std::mutex mutex_;
    std::map<std::byte*, Block> blocks_;
  };

  const std::uint64_t seed_;
  const int index_;
  std::atomic<std::uint64_t> num_streams_{0};
  std::shared_ptr<Memory> memory_ = std::make_shared<Memory>();
  std::shared_ptr<std::atomic<std::size_t>> pinned_ = std::make_shared<std::atomic<std::size_t>>(0);
};

}  // namespace farspan::testing
