#include "kernels/checked.h"
#include "kernels/dry/dry_kernels.h"
#include "kernels/factories.h"

namespace farspan {
namespace {

class DryBackend final : public Backend {
 public:
  explicit DryBackend(const BackendOptions& options)
      : target_(options.dry_target), device_(make_dry_device()), stream_(device_->make_stream()) {
    auto counting = std::make_unique<dry::DryKernels>(options);
    counting_ = counting.get();
    kernels_ = make_checked(std::move(counting), device_->id());
  }

  Device& device() override { return *device_; }
  Kernels& kernels() override { return *kernels_; }
  Stream& stream() override { return *stream_; }
  std::string description() const override {
    return "dry: checks shapes, counts, computes nothing";
  }
  DeviceKind target() override { return target_; }
  std::vector<MemoryItem> workspaces() const override { return counting_->workspaces(); }
  WorkCounters work() const override { return counting_->work(); }
  void reset_work() override { counting_->reset_work(); }

 private:
  DeviceKind target_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Stream> stream_;
  dry::DryKernels* counting_ = nullptr;  // owned by kernels_
  std::unique_ptr<Kernels> kernels_;
};

}  // namespace

std::unique_ptr<Backend> make_dry_backend(const BackendOptions& options) {
  return std::make_unique<DryBackend>(options);
}

}  // namespace farspan
