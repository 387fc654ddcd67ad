#include "kernels/backend.h"

#include "core/error.h"
#include "kernels/factories.h"

namespace farspan {

std::unique_ptr<Backend> make_backend(const BackendOptions& options) {
  switch (options.kind) {
    case DeviceKind::kCpu:
      return make_cpu_backend(options);
    case DeviceKind::kCuda:
      return make_cuda_backend(options);
    case DeviceKind::kDry:
      return make_dry_backend(options);
  }
  FARSPAN_CHECK(false, "device kind {}", static_cast<int>(options.kind));
  return nullptr;
}

std::vector<DeviceKind> built_backends() {
  std::vector<DeviceKind> kinds{DeviceKind::kCpu};
  if (cuda_is_built()) kinds.push_back(DeviceKind::kCuda);
  kinds.push_back(DeviceKind::kDry);
  return kinds;
}

int num_devices(DeviceKind kind) { return kind == DeviceKind::kCuda ? num_cuda_devices() : 1; }

std::vector<DeviceFact> device_facts(DeviceKind kind) {
  if (kind == DeviceKind::kCuda) return cuda_facts();
  return {};
}

}  // namespace farspan
