#include "kernels/checked.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/isa.h"
#include "kernels/factories.h"

namespace farspan {
namespace {

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(cpu::CpuConfig config)
      : device_(make_cpu_device()), stream_(device_->make_stream()) {
    auto kernels = std::make_unique<cpu::CpuKernels>(config);
    description_ = "cpu: " + kernels->description();
    kernels_ = make_checked(std::move(kernels), device_->id());
  }

  Device& device() override { return *device_; }
  Kernels& kernels() override { return *kernels_; }
  Stream& stream() override { return *stream_; }
  std::string description() const override { return description_; }

 private:
  std::unique_ptr<Device> device_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<Kernels> kernels_;
  std::string description_;
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options) {
  if (options.num_threads < 1)
    throw Error(ExitCode::kUsage, {.what = fmt::format("{} CPU threads", options.num_threads),
                                   .where = "cpu backend",
                                   .fix = "give each rank at least one thread"});
  const CpuIsa isa = options.cpu_isa == CpuIsa::kAuto ? best_cpu_isa() : options.cpu_isa;
  if (!cpu_supports(isa))
    throw Error(
        ExitCode::kUsage,
        {.what = fmt::format("this processor has no {}", name_of(isa)),
         .where = "cpu backend",
         .fix = fmt::format("leave the instruction set to the program; its choice here is {}",
                            name_of(best_cpu_isa()))});
  return std::make_unique<CpuBackend>(
      cpu::CpuConfig{.isa = isa, .num_threads = options.num_threads});
}

}  // namespace farspan
