// The CUDA row while CUDA lacks operations and make_backend refuses it: a backend of what is
// written. Once CUDA is complete this file goes, and kCuda joins row_kinds() beside kCpu.
#include "core/error.h"
#include "kernels/checked.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_kernels.h"
#include "support/parity_row.h"

namespace farspan::testing {
namespace {

class WrittenKernels final : public cuda::CudaKernels {
 public:
  using CudaKernels::CudaKernels;
  void attention_forward(const AttentionForwardArgs&, Stream&) override { refuse(); }
  void attention_delta(const AttentionDeltaArgs&, Stream&) override { refuse(); }
  void attention_backward(const AttentionBackwardArgs&, Stream&) override { refuse(); }

 private:
  [[noreturn]] static void refuse() {
    throw InternalError(__FILE__, __LINE__, "test filter", "this operation is not written on CUDA");
  }
};

class WrittenBackend final : public Backend {
 public:
  explicit WrittenBackend(int index)
      : device_(index),
        stream_(device_.make_stream()),
        kernels_(make_checked(std::make_unique<WrittenKernels>(device_), device_.id())) {}
  Device& device() override { return device_; }
  Kernels& kernels() override { return *kernels_; }
  Stream& stream() override { return *stream_; }
  std::string description() const override { return "cuda: operations written so far"; }

 private:
  cuda::CudaDevice device_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<Kernels> kernels_;
};

}  // namespace

std::vector<DeviceKind> row_kinds() { return {DeviceKind::kCuda}; }

std::unique_ptr<Backend> make_row_backend(const BackendOptions& options) {
  const cuda::DeviceCount found = cuda::count_devices();
  if (found.devices == 0)
    throw Error(ExitCode::kUsage, {.what = "no GPU on this machine: " + found.reason});
  return std::make_unique<WrittenBackend>(options.device_index);
}

}  // namespace farspan::testing
