// One NVIDIA GPU: memory, pinned host memory, streams.
#pragma once

#include <cuda_runtime.h>

#include <memory>

#include "core/device.h"

namespace farspan::cuda {

class CudaStream final : public Stream {
 public:
  CudaStream();
  ~CudaStream() override;
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;

  void synchronize() override;
  void* native_handle() const override { return stream_; }
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

// The queue behind a Stream of this backend.
cudaStream_t native(const Stream& stream);

class CudaDevice final : public Device {
 public:
  // Makes device `index` current on this thread. Throws Error(kUsage) when it is not there.
  explicit CudaDevice(int index);

  DeviceId id() const override { return {DeviceKind::kCuda, index_}; }
  Buffer allocate(std::size_t bytes) override;
  Buffer allocate_host(std::size_t bytes) override;
  void copy(std::byte* dst, const std::byte* src, std::size_t bytes, Stream& stream) override;
  std::unique_ptr<Stream> make_stream() override;

 private:
  int index_;
};

}  // namespace farspan::cuda
