// The CUDA backend's door.
#include <cublasLt.h>

#include "core/error.h"
#include "kernels/checked.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/trace_sink.h"
#include "kernels/factories.h"

namespace farspan {
namespace {

std::string describe(const cuda::CudaDevice& device) {
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
  return fmt::format("cuda:{}: {}, driver for CUDA {}.{}, cuBLASLt {}", device.id().index,
                     device.name(), driver / 1000, driver % 1000 / 10, cublasLtGetVersion());
}

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(const BackendOptions& options)
      : device_(options.device_index), stream_(device_.make_stream()) {
    auto kernels = std::make_unique<cuda::CudaKernels>(device_, options.attention_kernel);
    own_ = kernels.get();
    description_ = describe(device_) + ", attention by " + kernels->attention_description();
    kernels_ = make_checked(std::move(kernels), device_.id());
  }

  Device& device() override { return device_; }
  Kernels& kernels() override { return *kernels_; }
  Stream& stream() override { return *stream_; }
  std::string description() const override { return description_; }
  std::vector<std::string> take_notes() override { return own_->take_notes(); }
  std::unique_ptr<TraceSink> make_trace_sink(bool profile) override {
    return std::make_unique<cuda::CudaTraceSink>(*stream_, profile);
  }

 private:
  cuda::CudaDevice device_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<Kernels> kernels_;
  cuda::CudaKernels* own_ = nullptr;  // inside kernels_
  std::string description_;
};

}  // namespace

bool cuda_is_built() { return true; }

int num_cuda_devices() { return cuda::count_devices().devices; }

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options) {
  const cuda::DeviceCount found = cuda::count_devices();
  if (found.devices == 0)
    throw Error(
        ExitCode::kUsage,
        {.what = "no GPU can be used here: " + found.reason,
         .where = "device: cuda",
         .fix = "check the driver and CUDA_VISIBLE_DEVICES (nvidia-smi, farspan doctor), or "
                "set device: cpu"});
  if (options.device_index < 0 || options.device_index >= found.devices)
    throw Error(ExitCode::kUsage, {.what = fmt::format("there is no GPU {}: {} can be used here",
                                                       options.device_index, found.devices),
                                   .where = "device: cuda",
                                   .fix = "check CUDA_VISIBLE_DEVICES"});
  return std::make_unique<CudaBackend>(options);
}

}  // namespace farspan
