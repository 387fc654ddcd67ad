// A build with CUDA: what the factory says without a device, and the facts for doctor.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "kernels/backend.h"
#include "kernels/cuda/cuda_device.h"

namespace farspan {
namespace {

using ::testing::HasSubstr;

TEST(CudaFactory, WithoutADeviceSaysWhatIsMissing) {
  if (cuda::count_devices().devices > 0) GTEST_SKIP() << "this machine has a GPU";
  EXPECT_EQ(num_devices(DeviceKind::kCuda), 0);
  try {
    make_backend({.kind = DeviceKind::kCuda});
    FAIL() << "made a backend without a device";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kUsage);
    EXPECT_THAT(e.text().what, HasSubstr(cuda::count_devices().reason));
    EXPECT_THAT(e.text().fix, HasSubstr("device: cpu"));
  }
}

TEST(CudaFactory, ListsCudaAsBuilt) {
  EXPECT_THAT(built_backends(), ::testing::Contains(DeviceKind::kCuda));
}

TEST(CudaFacts, BuildDriverAndDevices) {
  const std::vector<DeviceFact> facts = device_facts(DeviceKind::kCuda);
  const cuda::DeviceCount found = cuda::count_devices();
  ASSERT_EQ(facts.size(), 4 + static_cast<std::size_t>(found.devices));
  EXPECT_EQ(facts[0].name, "cuda build");
  EXPECT_THAT(facts[0].value, HasSubstr("code for 80-real, 90a-real, 90-virtual"));
  EXPECT_EQ(facts[1].name, "cuda driver");
  EXPECT_EQ(facts[2].name, "cuda devices");
  EXPECT_THAT(facts[2].value,
              HasSubstr(found.devices > 0 ? std::to_string(found.devices) : "none: "));
  EXPECT_EQ(facts.back().name, "cudnn");
  EXPECT_TRUE(device_facts(DeviceKind::kCpu).empty());
}

}  // namespace
}  // namespace farspan
