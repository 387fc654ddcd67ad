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

// ---- blocks of rows -------------------------------------------------------------------------

class BlockedMatmul : public ::testing::TestWithParam<DType> {
 protected:
  struct Case {
    std::int64_t rows_before, rows, rows_after, n, k;
    bool trans_b;
    GradMode mode;
    DType out;
  };
  // The bits of the block `rows` of a product in three blocks.
  static std::vector<std::byte> block(const Case& c, int threads, bool native) {
    const auto backend = make_backend({.num_threads = threads});
    DeviceValues on(*backend);
    cpu::Matmul matmul({.num_threads = threads, .native_bf16 = native, .tile = 96},
                       cpu::row_ops_portable());
    const std::int64_t m = c.rows_before + c.rows + c.rows_after;
    std::vector<double> a = numbers(c.rows_before * c.k, 1);
    for (const auto& part : {numbers(c.rows * c.k, 2), numbers(c.rows_after * c.k, 3)})
      a.insert(a.end(), part.begin(), part.end());
    const Tensor out =
        on.put(std::vector<double>(static_cast<std::size_t>(m * c.n), 0.25), c.out, {m, c.n});
    const std::int64_t borders[] = {0, c.rows_before, c.rows_before + c.rows, m};
    matmul.run({.a = on.put(a, GetParam(), {m, c.k}),
                .b = on.put(numbers(c.n * c.k, 4), GetParam(),
                            c.trans_b ? Shape{c.n, c.k} : Shape{c.k, c.n}),
                .out = out,
                .trans_b = c.trans_b,
                .mode = c.mode,
                .row_blocks = borders});
    return on.bytes(out.rows(c.rows_before, c.rows));
  }

 private:
  // A run of normal numbers that comes round.
  static std::vector<double> numbers(std::int64_t n, std::size_t which) {
    static const std::vector<double> kRound = random_values(40009, 12);
    std::vector<double> v(static_cast<std::size_t>(n));
    for (std::size_t i = 0; i < v.size(); ++i) v[i] = kRound[(i + 9973 * which) % kRound.size()];
    return v;
  }
};
INSTANTIATE_TEST_SUITE_P(DTypes, BlockedMatmul, ::testing::Values(DType::kF32, DType::kBF16),
                         [](const auto& row) { return std::string(name_of(row.param)); });

// Neither the block's place, nor its neighbours, nor threads.
TEST_P(BlockedMatmul, DependsOnItsOwnRows) {
  const bool native = cpu::onednn_has_native_bf16();
  for (const bool trans_b : {false, true})
    for (const auto& [rows, n, k] :
         {std::tuple<std::int64_t, std::int64_t, std::int64_t>{128, 96, 352},
          {128, 700, 64},
          {37, 96, 41},
          {200, 48, 4500},
          {1, 33, 65}})
      for (const auto& [mode, out] :
           {std::pair{GradMode::kOverwrite, GetParam()}, {GradMode::kAccumulate, DType::kF32}}) {
        Case c{0, rows, 0, n, k, trans_b, mode, out};
        const auto alone = block(c, 1, native);
        for (const std::int64_t before : {1, 140})
          for (const int threads : kThreadSanitizer ? std::vector{1} : std::vector{1, 3}) {
            c.rows_before = before;
            c.rows_after = 150 - before;
            EXPECT_TRUE(block(c, threads, native) == alone)
                << "rows " << rows << " n " << n << " k " << k << " before " << before
                << " threads " << threads << " trans_b " << trans_b;
          }
      }
}

// The parts of a block are put where they belong.
TEST_P(BlockedMatmul, IsTheProduct) {
  const auto backend = make_backend({.num_threads = kTestThreads});
  DeviceValues on(*backend);
  const std::int64_t m = 301, n = 1100, k = 70;
  const auto a = rounded(random_values(m * k, 1), GetParam());
  const auto b = rounded(random_values(k * n, 2), GetParam());
  const std::int64_t blocks[] = {0, 7, 7, 135, m}, whole[] = {0, m};
  for (const bool native : {false, cpu::onednn_has_native_bf16()})
    for (const bool trans_a : {false, true})
      for (const bool trans_b : {false, true}) {
        cpu::Matmul matmul({.num_threads = kTestThreads, .native_bf16 = native, .tile = 96},
                           cpu::row_ops_portable());
        const Tensor out = on.poisoned(GetParam(), {m, n});
        MatmulArgs args{.a = on.put(a, GetParam(), trans_a ? Shape{k, m} : Shape{m, k}),
                        .b = on.put(b, GetParam(), trans_b ? Shape{n, k} : Shape{k, n}),
                        .out = out,
                        .trans_a = trans_a,
                        .trans_b = trans_b,
                        .row_blocks = blocks};
        if (trans_a) args.row_blocks = whole;
        matmul.run(args);
        expect_close(on.get(out), reference::matmul(a, b, m, n, k, trans_a, trans_b),
                     sum_tolerance(GetParam(), k), "out", {.shape = {m, n}});
      }
}

}  // namespace
}  // namespace farspan::testing
