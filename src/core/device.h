// Memory and queues of one device. `cpu` and `dry` live here; `cuda` in kernels/cuda.
//
// The dry device hands out addresses without memory behind them (PROT_NONE): code that reads a
// device value on the host faults at once, which is how the trainer's step is kept free of such
// reads.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "core/tensor.h"

namespace farspan {

// Move-only owner of device memory.
class Buffer {
 public:
  Buffer() = default;
  Buffer(std::byte* data, std::size_t bytes, DeviceId device,
         std::function<void(std::byte*, std::size_t)> release);
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer();

  std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  DeviceId device() const { return device_; }
  // The whole buffer as a tensor; CHECKs that it is large enough.
  Tensor tensor(DType dtype, Shape shape) const;

 private:
  void reset();

  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
  DeviceId device_{};
  std::function<void(std::byte*, std::size_t)> release_;
};

class Stream;

// Work of a queue that was recorded once, to be started again and again as one: one call instead of
// one per operation. It works on the tensors of its recording, at their addresses.
class Graph {
 public:
  virtual ~Graph() = default;
  // Enqueues the recorded work.
  virtual void launch(Stream& stream) = 0;
};

// An ordered queue of device work. On the CPU work runs at once and the queue is empty.
class Stream {
 public:
  virtual ~Stream() = default;
  virtual void synchronize() {}
  // The vendor's queue (a cudaStream_t), for libraries that need one; nullptr on CPU and dry.
  virtual void* native_handle() const { return nullptr; }

  // Recording: work given to the queue between begin_recording() and end_recording() does not run
  // but becomes a Graph. Meanwhile the device allocates nothing and nothing is waited for: what
  // tries gets an Error(kInternal), after which abandon_recording() leaves the queue as it was.
  // Other queues take part where events order them after this one, and it after them.
  virtual bool can_record() const { return false; }
  virtual bool is_recording() const { return false; }
  virtual void begin_recording();                  // CHECKs can_record()
  virtual std::unique_ptr<Graph> end_recording();  // likewise
  virtual void abandon_recording() noexcept {}
};

// A mark in a queue, to order queues and to ask how far one has come. On the CPU, whose queues are
// always empty, it is reached at once. May be recorded again and again.
//
//   ready->record(compute);   ready->order_before(transfer);   // transfer continues after the mark
class Event {
 public:
  virtual ~Event() = default;
  // Marks the work that `stream` holds now.
  virtual void record(Stream&) {}
  // Work given to `stream` from now on starts after the mark. Before any record(): no effect.
  virtual void order_before(Stream&) {}
  // Whether the marked work is done; true before any record(). Does not block.
  virtual bool reached() { return true; }
  // Blocks the calling thread until it is done.
  virtual void synchronize() {}
};

// Bytes of a device, those of other programs included.
struct DeviceMemory {
  std::size_t free = 0;
  std::size_t total = 0;
};

// Bytes that a program has taken of a device.
struct TakenMemory {
  std::size_t now = 0;
  std::size_t most = 0;  // so far
};

class Device {
 public:
  virtual ~Device() = default;
  virtual DeviceId id() const = 0;
  // "NVIDIA H200"; "" where description() of the backend says everything.
  virtual std::string name() const { return {}; }
  // Tells devices apart across the processes and machines of a job, whatever number each process
  // gives them: a GPU's UUID. "" where the device is the host.
  virtual std::string hardware_id() const { return {}; }
  // nullopt where memory is the host's.
  virtual std::optional<DeviceMemory> memory() const { return std::nullopt; }
  // Zero-filled on first use is not promised. Throws Error(kExhausted) when memory runs out.
  virtual Buffer allocate(std::size_t bytes) = 0;
  // By allocate(). Zeros where it is not counted (CPU, dry).
  virtual TakenMemory taken() const { return {}; }
  // Host memory that this device copies to and from fast (pinned for CUDA).
  virtual Buffer allocate_host(std::size_t bytes) = 0;
  // Copies between any two of host and this device, ordered on `stream`.
  virtual void copy(std::byte* dst, const std::byte* src, std::size_t bytes, Stream& stream) = 0;
  virtual std::unique_ptr<Stream> make_stream() = 0;
  virtual std::unique_ptr<Event> make_event() { return std::make_unique<Event>(); }
};

std::unique_ptr<Device> make_cpu_device();
std::unique_ptr<Device> make_dry_device();

}  // namespace farspan
