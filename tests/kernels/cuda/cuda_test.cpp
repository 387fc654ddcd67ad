// What is particular to CUDA: device memory, queues, alignment, grids, errors left behind. Parity
// of the operations themselves: test_kernels_parity.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>

#include "core/error.h"
#include "support/compare.h"
#include "support/device_values.h"
#include "support/reference.h"

namespace farspan::testing {
namespace {

using reference::Values;

class Cuda : public ::testing::Test {
 protected:
  void SetUp() override {
    try {
      backend_ = make_backend({.kind = DeviceKind::kCuda});
    } catch (const Error& absent) {
      if (absent.code() != ExitCode::kUsage) throw;
      GTEST_SKIP() << absent.text().what;
    }
    on_ = std::make_unique<DeviceValues>(*backend_);
  }
  Device& device() { return backend_->device(); }
  Kernels& kernels() { return backend_->kernels(); }
  Stream& stream() { return backend_->stream(); }
  DeviceValues& on() { return *on_; }

 private:
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<DeviceValues> on_;
};

TEST_F(Cuda, MemoryGoesThereAndBack) {
  EXPECT_EQ(device().allocate(0).data(), nullptr);
  const std::size_t bytes = (std::size_t{5} << 20) + 3;
  const Buffer there = device().allocate(bytes);
  const Buffer pinned = device().allocate_host(bytes);
  EXPECT_EQ(there.device(), (DeviceId{DeviceKind::kCuda, 0}));
  EXPECT_EQ(pinned.device(), (DeviceId{DeviceKind::kCpu, 0}));
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(there.data()) % 256, 0u);
  std::vector<std::byte> pageable(bytes), back(bytes);
  for (std::size_t i = 0; i < bytes; ++i) pageable[i] = static_cast<std::byte>(i * 7 % 251);
  device().copy(there.data(), pageable.data(), bytes, stream());
  device().copy(pinned.data(), there.data(), bytes, stream());
  device().copy(back.data(), there.data(), bytes, stream());
  stream().synchronize();
  EXPECT_TRUE(back == pageable);
  EXPECT_EQ(std::memcmp(pinned.data(), pageable.data(), bytes), 0);
}

// The failure must not come back as that of the next launch.
TEST_F(Cuda, MemoryThatRunsOutIsReportedOnce) {
  try {
    device().allocate(std::size_t{1} << 50);
    FAIL() << "a petabyte was allocated";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kExhausted) << e.what();
  }
  const Tensor x = on().poisoned(DType::kF32, {10});
  kernels().fill({.dst = x, .value = 2}, stream());
  expect_close(on().get(x), Values(10, 2.0), kExact, "x");
}

// More elements than a grid has threads.
TEST_F(Cuda, LoopsBeyondTheGrid) {
  const std::int64_t n = 2'000'003;
  const Values a = rounded(random_values(n, 1), DType::kBF16);
  const Tensor x = on().put(a, DType::kBF16, {n});
  const Tensor wide = on().poisoned(DType::kF32, {n});
  const Tensor sum = on().poisoned(DType::kF32, {n});
  kernels().copy({.src = x, .dst = wide}, stream());
  kernels().add({.a = wide, .b = wide, .out = sum}, stream());
  Values twice = a;
  for (double& v : twice) v *= 2;
  expect_close(on().get(sum), twice, kExact, "sum");
}

struct Product {
  std::int64_t m, n, k;
};

// Rows of a larger tensor begin where their length puts them, here at odd multiples of an element.
TEST_F(Cuda, MatmulOfRowsThatBeginAnywhere) {
  std::uint64_t seed = 100;
  for (const auto& [m, n, k] : {Product{40, 33, 65}, Product{7, 129, 31}, Product{128, 64, 96}})
    for (const DType dtype : {DType::kF32, DType::kBF16})
      for (const std::int64_t skip : {1, 2, 3}) {
        const Values a = rounded(random_values((m + skip) * k, ++seed), dtype);
        const Values b = rounded(random_values((k + skip) * n, ++seed), dtype);
        const Tensor out = on().poisoned(dtype, {m + skip, n});
        kernels().matmul({.a = on().put(a, dtype, {m + skip, k}).rows(skip, m),
                          .b = on().put(b, dtype, {k + skip, n}).rows(skip, k),
                          .out = out.rows(skip, m)},
                         stream());
        const Values expected = reference::matmul({a.begin() + skip * k, a.end()},
                                                  {b.begin() + skip * n, b.end()}, m, n, k);
        const Values got = on().get(out);
        expect_close(std::span(got).subspan(static_cast<std::size_t>(skip * n)), expected,
                     sum_tolerance(dtype, static_cast<double>(k)), "out",
                     {.shape = {m, n}, .seed = seed});
        for (std::int64_t i = 0; i < skip * n; ++i)  // -12345 in the output's dtype
          ASSERT_EQ(got[static_cast<std::size_t>(i)], rounded({-12345.0}, dtype)[0]);
      }
}

// Long sums of few outputs: where cuBLASLt splits K. One rounding, and the same bits every time.
TEST_F(Cuda, MatmulOfLongSumsRoundsOnceAndRepeats) {
  const std::int64_t m = 16, n = 24, k = 60000;
  const Values a = rounded(random_values(m * k, 7), DType::kBF16);
  const Values b = rounded(random_values(k * n, 8), DType::kBF16);
  const Tensor ta = on().put(a, DType::kBF16, {m, k});
  const Tensor tb = on().put(b, DType::kBF16, {k, n});
  const Tensor narrow = on().poisoned(DType::kBF16, {m, n});
  const Values expected = reference::matmul(a, b, m, n, k);
  // Products of normal numbers: the sum's deviation is sqrt(k) = 245, of its f32 error about 1e-3.
  constexpr Tolerance kLong{0.01, 1.01 / 256};
  kernels().matmul({.a = ta, .b = tb, .out = narrow}, stream());
  const auto first = on().bytes(narrow);
  expect_close(on().get(narrow), expected, kLong, "out", {.shape = {m, n}});
  for (int i = 0; i < 5; ++i) {
    kernels().matmul({.a = ta, .b = tb, .out = narrow}, stream());
    ASSERT_TRUE(on().bytes(narrow) == first);
  }
}

// Two queues at once: each has a workspace of its own.
TEST_F(Cuda, MatmulOnTwoQueues) {
  const std::int64_t m = 32, n = 32, k = 20000;
  const auto other = device().make_stream();
  Tensor a[2], b[2], out[2];
  Values expected[2];
  for (int i = 0; i < 2; ++i) {
    const auto seed = static_cast<std::uint64_t>(20 + 2 * i);
    const Values va = rounded(random_values(m * k, seed), DType::kBF16);
    const Values vb = rounded(random_values(k * n, seed + 1), DType::kBF16);
    a[i] = on().put(va, DType::kBF16, {m, k});
    b[i] = on().put(vb, DType::kBF16, {k, n});
    out[i] = on().put(Values(static_cast<std::size_t>(m * n), 0.0), DType::kF32, {m, n});
    expected[i] = reference::matmul(va, vb, m, n, k);
    for (double& v : expected[i]) v *= 50;
  }
  for (int round = 0; round < 50; ++round)
    for (int i = 0; i < 2; ++i)
      kernels().matmul({.a = a[i], .b = b[i], .out = out[i], .mode = GradMode::kAccumulate},
                       i == 0 ? stream() : *other);
  other->synchronize();
  for (int i = 0; i < 2; ++i)
    expect_close(on().get(out[i]), expected[i], {1.0, 1e-4}, "out", {.shape = {m, n}});
}

}  // namespace
}  // namespace farspan::testing
