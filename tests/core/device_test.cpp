#include "core/device.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>

namespace farspan {
namespace {

TEST(CpuDevice, AllocatesWritableAlignedMemoryAndCopies) {
  const auto device = make_cpu_device();
  const auto stream = device->make_stream();
  const Buffer a = device->allocate(1001), b = device->allocate_host(1001);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(a.data()) % 4096, 0u);
  EXPECT_EQ(a.bytes(), 1001u);
  std::memset(a.data(), 0x5a, a.bytes());
  device->copy(b.data(), a.data(), a.bytes(), *stream);
  stream->synchronize();
  EXPECT_EQ(std::memcmp(a.data(), b.data(), a.bytes()), 0);
}

TEST(CpuDevice, SaysWhenMemoryRunsOut) {
  const auto device = make_cpu_device();
  try {
    device->allocate(std::size_t{1} << 60);
    FAIL() << "2^60 bytes were allocated";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kExhausted);
    EXPECT_FALSE(e.text().fix.empty());
  }
}

TEST(DryDevice, TerabytesCostNoMemory) {
  const auto device = make_dry_device();
  const Buffer buffer = device->allocate(std::size_t{1} << 42);
  EXPECT_NE(buffer.data(), nullptr);
  EXPECT_EQ(buffer.device().kind, DeviceKind::kDry);
  const auto stream = device->make_stream();
  device->copy(buffer.data(), buffer.data() + 4096, 4096, *stream);  // must touch neither
}

// The signal that ends a child process running `body`; 0 when it ends well.
template <typename Body>
int signal_of_child(Body body) {
  const pid_t child = fork();
  if (child == 0) {
    std::signal(SIGSEGV, SIG_DFL);
    std::signal(SIGBUS, SIG_DFL);
    body();
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

// The point of the dry device: step logic that reads a device value on the host cannot go unseen.
TEST(DryDevice, ReadingOrWritingAValueOnTheHostFaults) {
  const auto device = make_dry_device();
  const Buffer buffer = device->allocate(4096);
  volatile std::byte* p = buffer.data();
  EXPECT_EQ(signal_of_child([] {}), 0);
  EXPECT_EQ(signal_of_child([p] { [[maybe_unused]] const std::byte read = *p; }), SIGSEGV);
  EXPECT_EQ(signal_of_child([p] { *p = std::byte{1}; }), SIGSEGV);
}

TEST(Buffer, ReleasesOnceAndMoves) {
  int released = 0;
  std::byte storage[8];
  const auto make = [&] {
    return Buffer(storage, sizeof storage, {}, [&](std::byte*, std::size_t) { ++released; });
  };
  {
    Buffer a = make();
    Buffer b = std::move(a);
    EXPECT_EQ(a.data(), nullptr);  // NOLINT(bugprone-use-after-move): that it is empty is the point
    EXPECT_EQ(b.data(), storage);
    Buffer c = make();
    c = std::move(b);
    EXPECT_EQ(released, 1) << "assignment releases what was held";
  }
  EXPECT_EQ(released, 2);
}

TEST(Buffer, AsTensorChecksItsSize) {
  const auto device = make_cpu_device();
  const Buffer buffer = device->allocate(64);
  EXPECT_EQ(buffer.tensor(DType::kF32, {4, 4}).data, buffer.data());
  EXPECT_THROW(buffer.tensor(DType::kF64, {3, 3}), InternalError);
}

}  // namespace
}  // namespace farspan
