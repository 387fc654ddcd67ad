#include "train/memory.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "support/tiny_config.h"
#include "train/device_overhead.h"
#include "train/longest.h"

namespace farspan {
namespace {

// The code of what `body` throws; nullopt where it throws nothing.
std::optional<ExitCode> code_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& e) {
    return e.code();
  }
  return std::nullopt;
}

std::size_t bytes_of(const std::vector<MemoryItem>& items, std::string_view name) {
  for (const MemoryItem& item : items)
    if (item.name == name) return item.bytes;
  return 0;
}

config::RunConfig cuda_config(int data, int context, int ulysses) {
  config::RunConfig c = testing::tiny_config("bf16");
  c.set_device("cuda");
  c.mutable_parallel()->set_data(data);
  c.mutable_parallel()->set_context(context);
  c.mutable_parallel()->set_ulysses(ulysses);
  c.mutable_parallel()->set_attention(ulysses > 1 ? "hybrid" : "ring");
  return c;
}

TEST(DeviceOverhead, IsWhatCudaNcclAndOperationsTake) {
  EXPECT_TRUE(dry_run(testing::tiny_config(), 0, 1).overhead.empty());
  const DryRunReport alone = dry_run(cuda_config(1, 1, 1), 0, 1);
  EXPECT_EQ(bytes_of(alone.overhead, "CUDA context"), kCudaContextBytes);
  EXPECT_EQ(bytes_of(alone.overhead, "cuBLASLt workspace"), 32u << 20);
  EXPECT_GT(bytes_of(alone.overhead, "operations' workspace"), 0u);
  EXPECT_GT(bytes_of(alone.overhead, "attention's lists of tiles"), 0u);
  EXPECT_EQ(bytes_of(alone.overhead, "NCCL"), 0u);
  EXPECT_EQ(alone.device_bytes(), alone.sizes.on_device() + alone.overhead_bytes());
  // The world's communicator, the ring's and the all-to-all's.
  const auto nccl = [](int data, int context, int ulysses) {
    return bytes_of(device_overhead(cuda_config(data, context, ulysses)), "NCCL");
  };
  EXPECT_EQ(nccl(2, 1, 1), kNcclBytesPerCommunicator);
  EXPECT_EQ(nccl(1, 4, 1), 2 * kNcclBytesPerCommunicator);
  EXPECT_EQ(nccl(1, 4, 2), 3 * kNcclBytesPerCommunicator);
}

// Its bitwise repeatable gradients take the square of the length, so that only short sequences go
// there; others take at most 1 GiB.
TEST(DeviceOverhead, CountsCudnnWhereItMayComputeAttention) {
  const auto workspace = [](const char* kernel, bool deterministic) {
    config::RunConfig config = cuda_config(1, 1, 1);
    config.mutable_model()->set_head_dim(128);
    config.mutable_train()->set_sequence_length(1 << 20);
    config.mutable_train()->set_batch_tokens(1 << 20);
    config.mutable_evaluation()->set_every(0);
    config.mutable_parallel()->set_attention_kernel(kernel);
    config.mutable_parallel()->set_deterministic(deterministic);
    return bytes_of(dry_run(config, 0, 1).overhead, "cuDNN workspace");
  };
  EXPECT_EQ(workspace("own", false), 0u);
  EXPECT_GT(workspace("auto", false), std::size_t{1} << 30);  // one KV head's, with two query heads
  EXPECT_LT(workspace("auto", false), std::size_t{4} << 30);
  EXPECT_EQ(workspace("auto", true), 0u);  // forward alone: its result and lse lie with the caller
}

TEST(DeviceOverhead, CountsAgainstDeviceMemory) {
  config::RunConfig config = cuda_config(1, 1, 1);
  const DryRunReport report = dry_run(config, 0, 1);
  config.set_device_memory(static_cast<std::int64_t>(report.device_bytes()));
  EXPECT_EQ(code_of([&] { check_memory(report, config, 0); }), std::nullopt);
  config.set_device_memory(static_cast<std::int64_t>(report.device_bytes()) - 1);
  EXPECT_EQ(code_of([&] { check_memory(report, config, 0); }), ExitCode::kDoesNotFit);
  EXPECT_FALSE(fits_device(report, config));
}

// Pinned memory for activations and the checkpoint's copy, of all ranks of the machine.
TEST(CheckMemory, HostMemoryBesideAGpuIsThatOfOffloadedActivations) {
  const auto available = available_host_memory();
  if (!available) GTEST_SKIP() << "/proc/meminfo cannot be read here";
  config::RunConfig config = cuda_config(1, 1, 1);
  DryRunReport report;
  report.sizes = {.weights = 2 * *available};  // on the GPU: not this machine's memory
  report.sizes.host = *available / 3;
  report.sizes.gradients = report.sizes.optimizer = report.sizes.activations = 0;
  report.sizes.scratch = report.sizes.batch = 0;
  EXPECT_EQ(code_of([&] { check_memory(report, config, 1); }), std::nullopt);
  EXPECT_EQ(code_of([&] { check_memory(report, config, 4); }), ExitCode::kExhausted);
  EXPECT_EQ(code_of([&] { check_memory(report, config, 0); }), std::nullopt);
  config.set_device("cpu");  // there it is all one
  EXPECT_EQ(code_of([&] { check_memory(report, config, 1); }), ExitCode::kExhausted);
}

TEST(LongestFit, FindsTheLargestMultiple) {
  int asked = 0;
  const auto longest = [&](std::int64_t unit, std::int64_t limit, std::int64_t threshold) {
    asked = 0;
    return longest_fit(unit, limit, [&](std::int64_t length) {
      ++asked;
      EXPECT_EQ(length % unit, 0);
      EXPECT_LE(length, limit);
      return length <= threshold;
    });
  };
  EXPECT_EQ(longest(256, 1 << 20, 255), 0);
  EXPECT_EQ(longest(256, 1 << 20, 256), 256);
  EXPECT_EQ(longest(256, 1 << 20, 5 * 256 + 17), 5 * 256);
  EXPECT_EQ(longest(256, 10000, 1 << 30), 39 * 256);
  EXPECT_EQ(longest(100, 50, 1 << 30), 0);
  const std::int64_t far = longest(256, std::int64_t{1} << 40, 123'456'789);
  EXPECT_LE(far, 123'456'789);
  EXPECT_GT(far, 123'456'789 * 255ll / 256);  // its resolution
  EXPECT_LT(asked, 40);
}

// What is asked of the dry run grows with the length, as the search takes for granted (but for
// cuDNN, which leaves long sequences to our kernels: by at most its workspace).
TEST(LongestFit, LongerSequencesNeedMore) {
  config::RunConfig config = cuda_config(1, 1, 1);
  config.mutable_parallel()->set_attention_kernel("own");
  config.mutable_train()->set_recompute("offload");
  const auto needs = [&](std::int64_t length) {
    config.mutable_train()->set_sequence_length(length);
    config.mutable_train()->set_batch_tokens(length);
    return dry_run(config, 0, 1).device_bytes();
  };
  std::size_t last = 0;
  for (std::int64_t length = 256; length <= 65536; length *= 2) {
    const std::size_t bytes = needs(length);
    EXPECT_GT(bytes, last) << length;
    last = bytes;
  }
}

}  // namespace
}  // namespace farspan
