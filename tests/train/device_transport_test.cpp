// Which transport a run takes, what a device's free memory allows, and the rates that MFU refers
// to.
#include "train/device_transport.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "comm/factory.h"
#include "support/async_device.h"
#include "train/flops.h"
#include "train/memory.h"

namespace farspan {
namespace {

using ::testing::HasSubstr;

TEST(DeviceTransport, NcclWhereEachRankHasADeviceOfItsOwn) {
  const std::vector<RankDevice> apart{{"a", "GPU-1"}, {"a", "GPU-2"}, {"b", "GPU-3"}};
  EXPECT_TRUE(choose_transport("auto", apart, true).nccl);
  EXPECT_TRUE(choose_transport("nccl", apart, true).nccl);
  EXPECT_FALSE(choose_transport("mpi", apart, true).nccl);
  EXPECT_FALSE(choose_transport("auto", apart, false).nccl);
  EXPECT_FALSE(choose_transport("auto", {{{"a", "GPU-1"}}}, true).nccl);
  EXPECT_TRUE(choose_transport("nccl", {{{"a", "GPU-1"}}}, true).nccl);
}

TEST(DeviceTransport, SaysWhoSharesADevice) {
  const std::vector<RankDevice> shared{{"a", "GPU-1"}, {"a", "GPU-2"}, {"a", "GPU-1"}};
  const TransportChoice choice = choose_transport("auto", shared, true);
  EXPECT_FALSE(choice.nccl);
  EXPECT_EQ(choice.why, "ranks 0 and 2 share GPU-1");
  try {
    choose_transport("nccl", shared, true);
    FAIL() << "chose NCCL";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kUsage);
    EXPECT_THAT(e.text().what, HasSubstr("ranks 0 and 2 share GPU-1"));
  }
  // NCCL_HOSTID makes machines of one.
  const std::vector<RankDevice> told_apart{{"0", "GPU-1"}, {"1", "GPU-1"}};
  EXPECT_TRUE(choose_transport("auto", told_apart, true).nccl);
}

TEST(DeviceTransport, ThreadRanksOfOneDeviceStage) {
  testing::AsyncDevice device;
  run_local_ranks(3, [&](Communicator& hosts) {
    const DeviceTransport made = connect_devices({}, hosts, device, "machine");
    ASSERT_NE(made.devices, nullptr);
    EXPECT_EQ(made.ranks_on_device, 3);
    EXPECT_EQ(&made.world(hosts), made.devices.get());
    EXPECT_THAT(made.description, HasSubstr("transport: thread through pinned host memory: "));
    if (made.devices->transport() != "thread") ADD_FAILURE() << made.devices->transport();
  });
  const auto cpu = make_cpu_device();
  const auto self = make_self_communicator();
  const DeviceTransport none = connect_devices({}, *self, *cpu, "machine");
  EXPECT_EQ(&none.world(*self), self.get());
  EXPECT_EQ(none.description, "");
}

class SmallDevice final : public testing::AsyncDevice {
 public:
  std::optional<DeviceMemory> memory() const override {
    return DeviceMemory{.free = std::size_t{3} << 30, .total = std::size_t{8} << 30};
  }
};

TEST(DeviceLimit, FreeMemorySharedOut) {
  const SmallDevice device;
  const DeviceLimit alone = free_device_memory({}, device, 1),
                    shared = free_device_memory({}, device, 2);
  check_limit(std::size_t{3} << 30, alone);
  check_limit((std::size_t{3} << 30) / 2, shared);
  try {
    check_limit((std::size_t{3} << 30) / 2 + 1, shared);
    FAIL() << "fits";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kDoesNotFit);
    EXPECT_THAT(e.text().what, HasSubstr("its GPU has 3 GiB free of 8 GiB, for 2 ranks"));
  }
  config::RunConfig config;
  config.set_device_memory(1000);
  check_limit(std::size_t{1} << 40,
              free_device_memory(config, device, 1));  // device_memory decides
  check_limit(std::size_t{1} << 50, free_device_memory({}, *make_cpu_device(), 1));
}

TEST(DataSheetPeak, KnowsGpusByName) {
  const auto rate = [](std::string_view name, DType dtype) {
    const auto peak = data_sheet_peak(name, dtype);
    return peak ? peak->flops_per_second / 1e12 : 0;
  };
  EXPECT_DOUBLE_EQ(rate("NVIDIA H200", DType::kBF16), 989.4);
  EXPECT_DOUBLE_EQ(rate("NVIDIA H200 NVL", DType::kBF16), 835.5);
  EXPECT_DOUBLE_EQ(rate("NVIDIA H100 80GB HBM3", DType::kBF16), 989.4);
  EXPECT_DOUBLE_EQ(rate("NVIDIA H100 PCIe", DType::kBF16), 756);
  EXPECT_DOUBLE_EQ(rate("NVIDIA A100-SXM4-80GB", DType::kBF16), 312);
  EXPECT_DOUBLE_EQ(rate("NVIDIA A100-SXM4-80GB", DType::kF32), 19.5);
  EXPECT_EQ(rate("NVIDIA H100 80GB HBM3 MIG 1g.10gb", DType::kBF16), 0);
  EXPECT_EQ(rate("NVIDIA GeForce RTX 9999", DType::kBF16), 0);
  EXPECT_EQ(rate("", DType::kBF16), 0);
  EXPECT_EQ(data_sheet_peak("NVIDIA H200", DType::kBF16)->how,
            "data sheet: dense bf16 of NVIDIA H200");
}

}  // namespace
}  // namespace farspan
