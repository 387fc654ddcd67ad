// One NVIDIA GPU: memory, pinned host memory, streams.
//
//   CudaDevice device(0);
//   const auto stream = device.make_stream();
//   Buffer x = device.allocate(bytes);                  // at a multiple of 256 bytes
//   device.copy(x.data(), host, x.bytes(), *stream);    // host memory may be pageable or pinned
//
// CUDA keeps a current device per thread. Everything here makes its own device current first, so
// any thread may use it (a thread that never did would wake up device 0). Kernels are launched by
// the thread that made the CudaDevice, or by one that has used it and no other since.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <memory>
#include <string>

#include "core/device.h"

namespace farspan::cuda {

struct DeviceCount {
  int devices = 0;
  std::string reason;  // CUDA's, where there is none
};

// The GPUs that this process may use. Throws nothing for their absence.
DeviceCount count_devices();

class CudaStream final : public Stream {
 public:
  explicit CudaStream(int device);
  ~CudaStream() override;
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;

  void synchronize() override;
  void* native_handle() const override { return stream_; }
  cudaStream_t get() const { return stream_; }

  bool can_record() const override { return true; }
  bool is_recording() const override { return recording_; }
  void begin_recording() override;
  std::unique_ptr<Graph> end_recording() override;
  void abandon_recording() noexcept override;

 private:
  int device_;
  cudaStream_t stream_ = nullptr;
  bool recording_ = false;
};

// A graph as CUDA runs it.
class CudaGraph final : public Graph {
 public:
  explicit CudaGraph(cudaGraphExec_t graph) : graph_(graph) {}
  ~CudaGraph() override;
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;

  void launch(Stream& stream) override;

 private:
  cudaGraphExec_t graph_;
};

class CudaEvent final : public Event {
 public:
  explicit CudaEvent(int device);
  ~CudaEvent() override;
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;

  void record(Stream& stream) override;
  void order_before(Stream& stream) override;
  bool reached() override;
  void synchronize() override;

 private:
  int device_;
  cudaEvent_t event_ = nullptr;
};

// The queue behind a Stream of this backend. CHECKs that it has one.
cudaStream_t native(const Stream& stream);

// Whether work put there now becomes part of a CUDA graph instead of running.
bool is_capturing(const Stream& stream);

class CudaDevice final : public Device {
 public:
  // Makes device `index` current on this thread. Throws Error(kUsage) when it is not there.
  explicit CudaDevice(int index);

  DeviceId id() const override { return {DeviceKind::kCuda, index_}; }
  std::string name() const override;
  std::string hardware_id() const override;
  std::optional<DeviceMemory> memory() const override;
  Buffer allocate(std::size_t bytes) override;
  TakenMemory taken() const override;
  Buffer allocate_host(std::size_t bytes) override;
  void copy(std::byte* dst, const std::byte* src, std::size_t bytes, Stream& stream) override;
  std::unique_ptr<Stream> make_stream() override;
  std::unique_ptr<Event> make_event() override;

 private:
  // Outlives the device: buffers give back to it.
  struct Tally {
    std::atomic<std::size_t> now = 0, most = 0;
  };

  int index_;
  std::shared_ptr<Tally> tally_ = std::make_shared<Tally>();
};

}  // namespace farspan::cuda
