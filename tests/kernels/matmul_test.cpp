// The widened bf16 path of the CPU's matmul with tiles small enough to have every kind of border.
#include "kernels/cpu/matmul.h"

#include <gtest/gtest.h>

#include "support/compare.h"
#include "support/device_values.h"
#include "support/reference.h"
#include "support/sanitizers.h"

namespace farspan::testing {
namespace {

TEST(WidenedMatmul, TilesInEveryDirection) {
  const auto backend = make_backend({.num_threads = kTestThreads});
  DeviceValues on(*backend);
  cpu::Matmul matmul({.num_threads = kTestThreads, .native_bf16 = false, .tile = 16},
                     cpu::row_ops_portable());
  const std::int64_t m = 37, n = 50, k = 41;
  const auto a = rounded(random_values(m * k, 1), DType::kBF16);
  const auto b = rounded(random_values(k * n, 2), DType::kBF16);
  for (const bool trans_a : {false, true})
    for (const bool trans_b : {false, true}) {
      const Tensor ta = on.put(a, DType::kBF16, trans_a ? Shape{k, m} : Shape{m, k});
      const Tensor tb = on.put(b, DType::kBF16, trans_b ? Shape{n, k} : Shape{k, n});
      const auto expected = reference::matmul(a, b, m, n, k, trans_a, trans_b);
      for (const DType out_dtype : {DType::kBF16, DType::kF32}) {
        const Tensor out = on.poisoned(out_dtype, {m, n});
        MatmulArgs args{.a = ta, .b = tb, .out = out, .trans_a = trans_a, .trans_b = trans_b};
        matmul.run(args);
        expect_close(on.get(out), expected, sum_tolerance(out_dtype, k), "out",
                     {.shape = {m, n}, .note = fmt::format("{} {}", trans_a, trans_b)});
        if (out_dtype != DType::kF32) continue;
        args.mode = GradMode::kAccumulate;
        matmul.run(args);
        auto twice = expected;
        for (double& x : twice) x *= 2;
        expect_close(on.get(out), twice, sum_tolerance(DType::kF32, 2 * k), "accumulated");
      }
    }
}

// Where the sum is exact in f32, both paths round it the same way: to the same bits.
TEST(WidenedMatmul, RoundsLikeTheNativePath) {
  const auto backend = make_backend({});
  DeviceValues on(*backend);
  const std::int64_t m = 40, n = 33, k = 20;
  const auto a = random_integers(m * k, 64, 3);
  const auto b = random_integers(k * n, 64, 4);
  const Tensor ta = on.put(a, DType::kBF16, {m, k});
  const Tensor tb = on.put(b, DType::kBF16, {k, n});
  const Tensor out = on.poisoned(DType::kBF16, {m, n});
  cpu::Matmul widened({.num_threads = 1, .native_bf16 = false}, cpu::row_ops_portable());
  widened.run({.a = ta, .b = tb, .out = out});
  expect_close(on.get(out), rounded(reference::matmul(a, b, m, n, k), DType::kBF16), kExact,
               "widened");
  if (!backend->description().ends_with("(bf16 native), 1 thread"))
    GTEST_SKIP() << "no native bf16 product here: " << backend->description();
  backend->kernels().matmul({.a = ta, .b = tb, .out = out}, backend->stream());
  expect_close(on.get(out), rounded(reference::matmul(a, b, m, n, k), DType::kBF16), kExact,
               "native");
}

}  // namespace
}  // namespace farspan::testing
