#include <cuda_runtime.h>

#include "device_timer.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_error.h"

namespace farspan::bench {
namespace {

class EventTimer final : public DeviceTimer {
 public:
  explicit EventTimer(Stream& stream) : stream_(cuda::native(stream)) {
    FARSPAN_CUDA(cudaEventCreate(&begin_));
    FARSPAN_CUDA(cudaEventCreate(&end_));
  }
  EventTimer(const EventTimer&) = delete;
  EventTimer& operator=(const EventTimer&) = delete;
  ~EventTimer() override {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }
  void begin() override { FARSPAN_CUDA(cudaEventRecord(begin_, stream_)); }
  double end() override {
    FARSPAN_CUDA(cudaEventRecord(end_, stream_));
    FARSPAN_CUDA(cudaEventSynchronize(end_));
    float milliseconds = 0;
    FARSPAN_CUDA(cudaEventElapsedTime(&milliseconds, begin_, end_));
    return 1e-3 * static_cast<double>(milliseconds);
  }

 private:
  cudaStream_t stream_;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

}  // namespace

std::unique_ptr<DeviceTimer> make_cuda_timer(Stream& stream) {
  return std::make_unique<EventTimer>(stream);
}

}  // namespace farspan::bench
