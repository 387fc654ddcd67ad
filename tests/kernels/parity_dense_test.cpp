// Copy, fill, add, matmul, RMSNorm and SwiGLU on every row against the double-precision reference.
#include <gtest/gtest.h>

#include <cmath>

#include "support/compare.h"
#include "support/parity_row.h"
#include "support/reference.h"

namespace farspan::testing {
namespace {

using reference::Values;

class DenseParity : public ParityTest {};
INSTANTIATE_TEST_SUITE_P(Rows, DenseParity, ::testing::ValuesIn(parity_rows()), name_of_row);

// Sizes around every vector width, and past the point where threads join in.
constexpr std::int64_t kSizes[] = {0, 1, 7, 16, 33, 1000, 40003};

TEST_P(DenseParity, CopyRoundsToNearestEven) {
  for (const std::int64_t n : kSizes) {
    const Values v = random_values(n, 1);
    const Tensor src = on().put(v, DType::kF32, {n});
    const Tensor dst = on().poisoned(dtype(), {n});
    const Tensor back = on().poisoned(DType::kF32, {n});
    kernels().copy({.src = src, .dst = dst}, stream());
    kernels().copy({.src = dst, .dst = back}, stream());
    expect_close(on().get(dst), rounded(v, dtype()), kExact, "dst");
    expect_close(on().get(back), rounded(v, dtype()), kExact, "back");
  }
}

// Ties, both signs, zeros, denormals, the largest floats, infinities and NaN, and bits at random.
TEST_P(DenseParity, CopyRoundsEveryKindOfFloat) {
  std::vector<std::uint32_t> bits{0x00000000, 0x80000000, 0x00000001, 0x00008000, 0x00018000,
                                  0x3f808000, 0x3f818000, 0x3f808001, 0x3f807fff, 0xbf808000,
                                  0x7f7fffff, 0xff7fffff, 0x7f7f8000, 0x7f800000, 0xff800000,
                                  0x7fc00000, 0x7f800001, 0xffffffff};
  const CounterRng rng(3, stream_id("test.bits"));
  for (std::uint64_t i = 0; i < 20000; ++i) bits.push_back(static_cast<std::uint32_t>(rng.bits(i)));
  std::vector<std::byte> host(bits.size() * 4);
  std::memcpy(host.data(), bits.data(), host.size());
  const auto n = static_cast<std::int64_t>(bits.size());
  const Tensor src = on().put_bytes(host, DType::kF32, {n});
  const Tensor dst = on().poisoned(DType::kBF16, {n});
  kernels().copy({.src = src, .dst = dst}, stream());
  const std::vector<std::byte> got = on().bytes(dst);
  for (std::size_t i = 0; i < bits.size(); ++i) {
    std::uint16_t actual;
    std::memcpy(&actual, got.data() + 2 * i, 2);
    ASSERT_EQ(actual, BFloat16::round(std::bit_cast<float>(bits[i]))) << std::hex << bits[i];
  }
}

TEST_P(DenseParity, CopyKeepsIntegers) {
  const Values v = random_integers(1001, 1 << 30, 4);
  const Tensor src = on().put(v, DType::kI32, {1001});
  const Tensor dst = on().poisoned(DType::kI32, {1001});
  kernels().copy({.src = src, .dst = dst}, stream());
  expect_close(on().get(dst), v, kExact, "dst");
}

TEST_P(DenseParity, Fill) {
  for (const DType type : {DType::kF32, DType::kBF16, DType::kF64, DType::kI32, DType::kI64})
    for (const std::int64_t n : kSizes) {
      const Tensor dst = on().poisoned(type, {n});
      kernels().fill({.dst = dst, .value = 7}, stream());
      expect_close(on().get(dst), Values(static_cast<std::size_t>(n), 7), kExact, "dst");
    }
}

TEST_P(DenseParity, AddAlsoInPlace) {
  for (const std::int64_t n : kSizes) {
    const Values a = values(n, 5);
    const Values b = values(n, 6);
    Values sum(a.size());
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] = a[i] + b[i];
    const Tensor ta = on().put(a, dtype(), {n});
    const Tensor tb = on().put(b, dtype(), {n});
    const Tensor out = on().poisoned(dtype(), {n});
    kernels().add({.a = ta, .b = tb, .out = out}, stream());
    expect_close(on().get(out), rounded(sum, dtype()), kExact, "out");
    kernels().add({.a = ta, .b = tb, .out = tb}, stream());
    expect_close(on().get(tb), rounded(sum, dtype()), kExact, "in place");
  }
}

struct MatmulCase {
  std::int64_t m, n, k;
};

TEST_P(DenseParity, MatmulInEveryLayout) {
  const MatmulCase cases[] = {{1, 1, 1},   {5, 3, 7},  {64, 48, 32}, {33, 65, 17},
                              {1, 50, 20}, {50, 1, 9}, {17, 40, 1},  {130, 70, 96}};
  std::uint64_t seed = 10;
  for (const auto& [m, n, k] : cases)
    for (const bool trans_a : {false, true})
      for (const bool trans_b : {false, true})
        for (const bool accumulate : {false, true})
          for (const DType out_dtype : {dtype(), DType::kF32}) {
            if (accumulate && out_dtype != DType::kF32) continue;
            const Values a = values(m * k, ++seed);
            const Values b = values(k * n, ++seed);
            const Values before = random_values(m * n, ++seed);
            const Tensor ta = on().put(a, dtype(), trans_a ? Shape{k, m} : Shape{m, k});
            const Tensor tb = on().put(b, dtype(), trans_b ? Shape{n, k} : Shape{k, n});
            const Tensor out = on().put(before, out_dtype, {m, n});
            kernels().matmul({.a = ta,
                              .b = tb,
                              .out = out,
                              .trans_a = trans_a,
                              .trans_b = trans_b,
                              .mode = accumulate ? GradMode::kAccumulate : GradMode::kOverwrite},
                             stream());
            Values expected = reference::matmul(a, b, m, n, k, trans_a, trans_b);
            if (accumulate)
              for (std::size_t i = 0; i < expected.size(); ++i)
                expected[i] += rounded({before[i]}, DType::kF32)[0];
            expect_close(on().get(out), expected, sum_tolerance(out_dtype, static_cast<double>(k)),
                         "out",
                         {.shape = {m, n},
                          .seed = seed,
                          .note = fmt::format("k {} trans {} {} accumulate {}", k, trans_a, trans_b,
                                              accumulate)});
          }
}

TEST_P(DenseParity, MatmulOfNothing) {
  const auto product = [&](std::int64_t m, std::int64_t n, std::int64_t k, GradMode mode) {
    const Tensor out = on().put(Values(static_cast<std::size_t>(m * n), 3), DType::kF32, {m, n});
    kernels().matmul({.a = on().put(Values(static_cast<std::size_t>(m * k), 1), dtype(), {m, k}),
                      .b = on().put(Values(static_cast<std::size_t>(k * n), 1), dtype(), {k, n}),
                      .out = out,
                      .mode = mode},
                     stream());
    return on().get(out);
  };
  EXPECT_TRUE(product(0, 4, 3, GradMode::kOverwrite).empty());
  EXPECT_TRUE(product(4, 0, 3, GradMode::kOverwrite).empty());
  EXPECT_EQ(product(1, 2, 0, GradMode::kOverwrite), (Values{0, 0}));
  EXPECT_EQ(product(1, 2, 0, GradMode::kAccumulate), (Values{3, 3}));
}

TEST_P(DenseParity, RmsNorm) {
  const std::int64_t shapes[][2] = {{0, 8}, {1, 1}, {3, 5}, {70, 64}, {100, 257}, {5000, 16}};
  for (const auto& [t, c] : shapes) {
    const Values x = values(t * c, 20, 2);
    const Values weight = values(c, 21);
    const Values dy = values(t * c, 22);
    const Values before = values(t * c, 23);
    const Tensor tx = on().put(x, dtype(), {t, c});
    const Tensor tw = on().put(weight, dtype(), {c});
    const Tensor y = on().poisoned(dtype(), {t, c});
    const Tensor rstd = on().poisoned(DType::kF32, {t});
    kernels().rmsnorm_forward({.x = tx, .weight = tw, .y = y, .rstd = rstd, .eps = 1e-5f},
                              stream());
    const auto forward = reference::rmsnorm_forward(x, weight, 1e-5f);
    expect_close(on().get(y), forward.y, kernel_tolerance(dtype()), "y", {.shape = {t, c}});
    expect_close(on().get(rstd), forward.rstd, kernel_tolerance(DType::kF32), "rstd");

    const auto expected = reference::rmsnorm_backward(x, weight, forward.rstd, dy);
    for (const GradMode mode : {GradMode::kOverwrite, GradMode::kAccumulate}) {
      const Tensor dx = on().put(before, dtype(), {t, c});
      const Tensor dweight = on().put(Values(static_cast<std::size_t>(c), 1), DType::kF32, {c});
      kernels().rmsnorm_backward({.x = tx,
                                  .weight = tw,
                                  .rstd = rstd,
                                  .dy = on().put(dy, dtype(), {t, c}),
                                  .dx = dx,
                                  .dweight = dweight,
                                  .dx_mode = mode},
                                 stream());
      Values sum_dx = expected.dx;
      if (mode == GradMode::kAccumulate)
        for (std::size_t i = 0; i < sum_dx.size(); ++i) sum_dx[i] += before[i];
      Values sum_dweight = expected.dweight;
      for (double& d : sum_dweight) d += 1;
      expect_close(on().get(dx), sum_dx, sum_tolerance(dtype(), 20), "dx", {.shape = {t, c}});
      expect_close(on().get(dweight), sum_dweight,
                   sum_tolerance(DType::kF32, static_cast<double>(t)), "dweight");
    }
  }
}

// The bits are those of add and rmsnorm_forward, wherever the sum is written.
TEST_P(DenseParity, RmsNormOfASum) {
  const std::int64_t shapes[][2] = {{0, 8}, {1, 1}, {3, 5}, {70, 64}, {9, 257}, {4, 2048}};
  for (const auto& shape : shapes) {
    const std::int64_t t = shape[0], c = shape[1];
    const Values a = values(t * c, 27, 2), b = values(t * c, 28);
    const auto put = [&](const Values& v) { return on().put(v, dtype(), {t, c}); };
    const auto fresh = [&] { return on().poisoned(dtype(), {t, c}); };
    const auto fresh_rstd = [&] { return on().poisoned(DType::kF32, {t}); };
    const Tensor weight = on().put(values(c, 29), dtype(), {c});
    const Tensor sum = fresh(), y = fresh(), rstd = fresh_rstd();
    kernels().add({.a = put(a), .b = put(b), .out = sum}, stream());
    kernels().rmsnorm_forward({.x = sum, .weight = weight, .y = y, .rstd = rstd}, stream());
    for (const int place : {0, 1, 2}) {
      RmsNormForwardArgs args{
          .x = put(a), .weight = weight, .y = fresh(), .rstd = fresh_rstd(), .residual = put(b)};
      args.sum = place == 0 ? fresh() : place == 1 ? args.x : args.residual;
      kernels().rmsnorm_forward(args, stream());
      EXPECT_EQ(on().bytes(args.sum), on().bytes(sum)) << t << " " << c << " " << place;
      EXPECT_EQ(on().bytes(args.y), on().bytes(y)) << t << " " << c << " " << place;
      EXPECT_EQ(on().bytes(args.rstd), on().bytes(rstd)) << t << " " << c << " " << place;
    }
  }
}

TEST_P(DenseParity, RmsNormBackwardInPlace) {
  const Values x = values(6 * 40, 24);
  const Values weight = values(40, 25);
  const Values dy = values(6 * 40, 26);
  const Values rstd = rounded(reference::rmsnorm_forward(x, weight, 1e-5).rstd, DType::kF32);
  const Tensor dx = on().put(dy, dtype(), {6, 40});
  kernels().rmsnorm_backward({.x = on().put(x, dtype(), {6, 40}),
                              .weight = on().put(weight, dtype(), {40}),
                              .rstd = on().put(rstd, DType::kF32, {6}),
                              .dy = dx,
                              .dx = dx,
                              .dweight = on().poisoned(DType::kF32, {40})},
                             stream());
  expect_close(on().get(dx), reference::rmsnorm_backward(x, weight, rstd, dy).dx,
               sum_tolerance(dtype(), 20), "dx", {.shape = {6, 40}});
}

TEST_P(DenseParity, SwiGlu) {
  for (const std::int64_t n : kSizes) {
    Values gate = values(n, 30, 6);
    if (n >= 7) {  // where exp over- or underflows a float
      gate[0] = -120;
      gate[1] = 120;
      gate[2] = -88;
      gate[3] = 0;
    }
    const Values up = values(n, 31);
    const Values dout = values(n, 32);
    const Tensor tg = on().put(gate, dtype(), {1, n});
    const Tensor tu = on().put(up, dtype(), {1, n});
    const Tensor td = on().put(dout, dtype(), {1, n});
    const Tensor out = on().poisoned(dtype(), {1, n});
    kernels().swiglu_forward({.gate = tg, .up = tu, .out = out}, stream());
    expect_close(on().get(out), reference::swiglu_forward(gate, up), kernel_tolerance(dtype()),
                 "out", {.seed = 30});
    // In place, as the model does: dgate over gate, dup over dout.
    kernels().swiglu_backward({.gate = tg, .up = tu, .dout = td, .dgate = tg, .dup = td}, stream());
    const auto expected = reference::swiglu_backward(gate, up, dout);
    expect_close(on().get(tg), expected.dgate, sum_tolerance(dtype(), 10), "dgate");
    expect_close(on().get(td), expected.dup, sum_tolerance(dtype(), 10), "dup");
  }
}

// A NaN must reach the loss: the trainer's guard looks there.
TEST_P(DenseParity, NotANumberSpreads) {
  Values gate(20, 1.0);
  gate[3] = std::nan("");
  const Tensor out = on().poisoned(dtype(), {1, 20});
  kernels().swiglu_forward({.gate = on().put(gate, dtype(), {1, 20}),
                            .up = on().put(Values(20, 1.0), dtype(), {1, 20}),
                            .out = out},
                           stream());
  EXPECT_TRUE(std::isnan(on().get(out)[3]));
  EXPECT_FALSE(std::isnan(on().get(out)[4]));
}

}  // namespace
}  // namespace farspan::testing
