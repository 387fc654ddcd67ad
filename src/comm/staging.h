// Device tensors for transports that move host memory. A collective's inputs are copied to pinned
// memory, its schedule runs there, and its outputs are copied back:
//
//   compute stream   kernels [start] kernels ................ [after landed] kernels
//   out stream                 [after start] device -> pinned [ready]
//   transport                                          messages and sums
//   in stream                                                 pinned -> device [landed]
//
// Nothing waits on the host for the compute stream: polls of the operation find `ready` reached and
// start its messages (Schedule::ready); the compute stream is made to wait for `landed` once the
// host knows that everything has arrived (Schedule::arrive). Reductions are those of the host, in
// rank order, so that results equal those of host tensors bit by bit.
//
//   auto staging = std::make_shared<Staging>(device, StagingOptions{});
//   plan.schedule = staging->schedule(work, compute_stream);
//
// Pinned buffers are kept for reuse: as many as were under way at once, each as large as the
// largest that it served. A large all_reduce goes in chunks through two of them. Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "comm/factory.h"
#include "comm/schedule.h"
#include "core/device.h"

namespace farspan {

// A collective before it is known where its messages are read and written.
struct Work {
  struct Use {
    Tensor tensor;
    bool reads = false;
    bool writes = false;  // all of it
  };
  std::vector<Use> uses;
  // The schedule over tensors of these shapes, in the order of `uses`.
  std::function<std::unique_ptr<Schedule>(std::span<const Tensor>)> schedule;
  // May be done in pieces of any multiple of this many elements, cut from all tensors alike; 0:
  // not.
  std::int64_t grain = 0;
  // Reads and writes the same places, so that one rank alone has nothing to do.
  bool in_place = false;
  // Messages between different ranks and nothing else: no sums, no local copies.
  bool only_messages = false;
};

class Staging : public std::enable_shared_from_this<Staging> {
 public:
  // `device` must outlive this object.
  Staging(Device& device, StagingOptions options);
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  Device& device() { return device_; }
  const StagingOptions& options() const { return options_; }
  // Starts after what `compute` holds now; `compute` must outlive the schedule. `direct`: the
  // transport reads and writes device memory itself.
  std::unique_ptr<Schedule> schedule(const Work& work, Stream& compute, bool direct);

 private:
  friend class StagedSchedule;

  // Host memory with the last work of the device on it.
  struct Pinned {
    Buffer buffer;
    std::shared_ptr<Event> busy;
  };
  // At least `bytes` that no device work uses any more.
  Buffer take(std::size_t bytes);
  void give(Pinned pinned);

  Device& device_;
  const StagingOptions options_;
  const std::unique_ptr<Stream> out_, in_;
  std::mutex mutex_;
  std::vector<Pinned> free_;
};

}  // namespace farspan
