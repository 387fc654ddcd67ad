// What `farspan doctor` says about CUDA: this build's libraries, the driver, the devices.
#include <cublasLt.h>
#include <cuda_runtime.h>

#include "kernels/cuda/attention/cudnn_engine.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/factories.h"

namespace farspan {
namespace {

// 13000 -> "13.0", as CUDA numbers its driver interface and its runtime.
std::string version_text(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

std::string describe(const cudaDeviceProp& device) {
  return fmt::format("{}, compute capability {}.{}, {:.1f} GiB, {} multiprocessors", device.name,
                     device.major, device.minor,
                     static_cast<double>(device.totalGlobalMem) / (1 << 30),
                     device.multiProcessorCount);
}

}  // namespace

std::vector<DeviceFact> cuda_facts() {
  std::vector<DeviceFact> facts;
  int runtime = 0, driver = 0;
  if (cudaRuntimeGetVersion(&runtime) != cudaSuccess) runtime = 0;
  facts.push_back(
      {"cuda build", fmt::format("CUDA {}, cuBLASLt {}, code for {}", version_text(runtime),
                                 cublasLtGetVersion(), FARSPAN_CUDA_ARCHITECTURES)});
  const bool has_driver = cudaDriverGetVersion(&driver) == cudaSuccess && driver > 0;
  facts.push_back({"cuda driver", has_driver ? "serves CUDA up to " + version_text(driver)
                                             : "none on this machine"});
  const cuda::DeviceCount found = cuda::count_devices();
  facts.push_back({"cuda devices",
                   found.devices > 0 ? fmt::format("{}", found.devices) : "none: " + found.reason});
  for (int i = 0; i < found.devices; ++i) {
    cudaDeviceProp device{};
    const cudaError_t status = cudaGetDeviceProperties(&device, i);
    facts.push_back({fmt::format("cuda:{}", i),
                     status == cudaSuccess
                         ? describe(device)
                         : fmt::format("cannot be asked: {}", cudaGetErrorString(status))});
  }
  const cuda::CudnnFacts cudnn = cuda::cudnn_facts();
  facts.push_back({"cudnn", cudnn.absent.empty()
                                ? fmt::format("{}.{}.{}, for attention", cudnn.version / 10000,
                                              cudnn.version / 100 % 100, cudnn.version % 100)
                                : cudnn.absent});
  (void)cudaGetLastError();  // what failed above has been said
  return facts;
}

}  // namespace farspan
