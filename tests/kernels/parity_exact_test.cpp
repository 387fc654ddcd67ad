// Copies between layouts and sums that do not depend on the order of their terms, on every row.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "support/compare.h"
#include "support/parity_row.h"
#include "support/reference.h"

namespace farspan::testing {
namespace {

using Values = std::vector<double>;

class ExactParity : public ParityTest {
 protected:
  Tensor integers(const std::vector<std::int64_t>& values) {
    std::vector<std::byte> bytes(values.size() * 8);
    std::memcpy(bytes.data(), values.data(), bytes.size());
    return on().put_bytes(bytes, DType::kI64, {static_cast<std::int64_t>(values.size())});
  }
  std::vector<std::int64_t> integers(const Tensor& t) {
    const std::vector<std::byte> bytes = on().bytes(t);
    std::vector<std::int64_t> values(bytes.size() / 8);
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  }
  ExactSum zero_sum(std::int64_t n) {
    const std::vector<std::int64_t> zeros(static_cast<std::size_t>(n));
    return {integers(zeros), integers(zeros), integers(std::vector<std::int64_t>{0})};
  }
  void add(const Tensor& src, const ExactSum& sum, const Tensor& ids = {}) {
    kernels().exact_add({.src = src, .ids = ids, .sum = sum}, stream());
  }
  Values read(const ExactSum& sum, DType dtype) {
    const Tensor dst = on().poisoned(dtype, sum.high.shape);
    kernels().exact_read({.sum = sum, .dst = dst}, stream());
    return on().get(dst);
  }
};
INSTANTIATE_TEST_SUITE_P(Rows, ExactParity, ::testing::ValuesIn(parity_rows()), name_of_row);

// ---- copy_2d --------------------------------------------------------------------------------

// Any copy of any dtypes, element by element, of the numbers that the two tensors hold.
Values copied(const Values& src, Values dst, const Copy2dArgs& a) {
  for (std::int64_t r = 0; r < a.rows; ++r)
    for (std::int64_t c = 0; c < a.cols; ++c) {
      const double x = src[static_cast<std::size_t>(a.src_begin + r * a.src_stride + c)];
      double& to = dst[static_cast<std::size_t>(a.dst_begin + r * a.dst_stride + c)];
      to = a.mode == GradMode::kAccumulate ? rounded({x + to}, DType::kF32)[0] : x;
    }
  return rounded(dst, a.dst.dtype);
}

// Heads [2, 5) of (T, 7, D) to heads [1, 4) of (T, 5, D), and columns [3, 3 + n) of (H, T).
std::vector<Copy2dArgs> copies_of(std::int64_t tokens, std::int64_t d) {
  const std::int64_t part = tokens / 2;
  return {{.rows = tokens,
           .cols = 3 * d,
           .src_begin = 2 * d,
           .src_stride = 7 * d,
           .dst_begin = d,
           .dst_stride = 5 * d},
          {.rows = 4,
           .cols = part,
           .src_begin = std::min<std::int64_t>(3, tokens - part),
           .src_stride = tokens,
           .dst_begin = 0,
           .dst_stride = part}};
}

TEST_P(ExactParity, CopyOfHeadsAndOfColumns) {
  for (const std::int64_t tokens : {1, 9, 200, 3001})
    for (const std::int64_t d : {1, 20})
      for (Copy2dArgs args : copies_of(tokens, d))
        for (const DType to : {DType::kF32, DType::kBF16})
          for (const GradMode mode : {GradMode::kOverwrite, GradMode::kAccumulate}) {
            if (mode == GradMode::kAccumulate && to != DType::kF32) continue;
            const Values src = values(tokens * 7 * d + 4 * tokens, 1);
            const Values dst = rounded(random_values(tokens * 5 * d + 4 * tokens, 2), to);
            args.src = on().put(src, dtype(), {tokens, 7 * d + 4});
            args.dst = on().put(dst, to, {tokens, 5 * d + 4});
            args.mode = mode;
            kernels().copy_2d(args, stream());
            expect_close(on().get(args.dst), copied(src, dst, args), kExact, "dst",
                         {.seed = 2, .note = fmt::format("tokens {} d {}", tokens, d)});
          }
}

TEST_P(ExactParity, CopyOfIntegersAndOfNothing) {
  for (const DType type : {DType::kI32, DType::kI64}) {
    const Values src = random_integers(60, 1 << 30, 3), dst = random_integers(60, 1 << 30, 4);
    Copy2dArgs args{.src = on().put(src, type, {60}),
                    .dst = on().put(dst, type, {60}),
                    .rows = 5,
                    .cols = 4,
                    .src_begin = 2,
                    .src_stride = 0,  // one row, five times
                    .dst_begin = 7,
                    .dst_stride = 10};
    kernels().copy_2d(args, stream());
    expect_close(on().get(args.dst), copied(src, dst, args), kExact, "dst");
    if (type == DType::kI64) {
      args.mode = GradMode::kAccumulate;
      Values sum = on().get(args.dst);
      for (std::int64_t i = 0; i < 20; ++i)
        sum[static_cast<std::size_t>(7 + i / 4 * 10 + i % 4)] +=
            src[static_cast<std::size_t>(2 + i % 4)];
      kernels().copy_2d(args, stream());
      expect_close(on().get(args.dst), sum, kExact, "sum");
    }
    args.dst = on().put(dst, type, {60});
    args.rows = 0;
    kernels().copy_2d(args, stream());
    expect_close(on().get(args.dst), dst, kExact, "untouched");
  }
}

// ---- exact sums -----------------------------------------------------------------------------

__extension__ typedef __int128 Int128;

// x in units of 2^-60, rounded to nearest even.
Int128 units_of(double x) {
  const double units = std::ldexp(x, 60);
  return static_cast<Int128>(std::abs(units) < 0x1p52 ? std::nearbyint(units) : units);
}

Int128 units_of(std::int64_t high, std::int64_t low) {
  return static_cast<Int128>(high) * (std::int64_t{1} << 40) + low;
}

// Numbers of every size that a term may have, from 2^-70 to 2^20, each as `type` holds it.
Values terms(std::int64_t n, std::uint64_t seed, DType type) {
  Values v = random_values(n, seed);
  const Values exponents = random_integers(n, 88, seed + 1);
  for (std::size_t i = 0; i < v.size(); ++i) {
    v[i] = std::ldexp(std::clamp(v[i], -3.9, 3.9), static_cast<int>(exponents[i]) - 70);
    if (exponents[i] == 0) v[i] = 0;
  }
  return rounded(v, type);
}

// `count` tensors of n terms, added in two orders: the same bits, which are those of the sum.
TEST_P(ExactParity, SumsDoNotDependOnOrder) {
  for (const DType type : {dtype(), DType::kF64})
    for (const std::int64_t n : {1, 7, 33, 20011}) {
      const int count = n > 1000 ? 5 : 60;
      std::vector<Values> all;
      std::vector<Int128> expected(static_cast<std::size_t>(n));
      for (int i = 0; i < count; ++i) {
        all.push_back(terms(n, static_cast<std::uint64_t>(10 * i + 5), type));
        for (std::size_t j = 0; j < all.back().size(); ++j) expected[j] += units_of(all.back()[j]);
      }
      const ExactSum ascending = zero_sum(n), shuffled = zero_sum(n);
      for (int i = 0; i < count; ++i) {
        add(on().put(all[static_cast<std::size_t>(i)], type, {n}), ascending);
        const auto other = static_cast<std::size_t>((i * 7 + 3) % count);
        add(on().put(all[other], type, {n}), shuffled);
      }
      EXPECT_EQ(integers(ascending.high), integers(shuffled.high));
      EXPECT_EQ(integers(ascending.low), integers(shuffled.low));
      EXPECT_EQ(integers(ascending.invalid), (std::vector<std::int64_t>{0}));
      const auto high = integers(ascending.high), low = integers(ascending.low);
      Values as_double(expected.size());
      for (std::size_t j = 0; j < expected.size(); ++j) {
        ASSERT_TRUE(units_of(high[j], low[j]) == expected[j]) << "element " << j;
        as_double[j] = std::ldexp(static_cast<double>(expected[j]), -60);
      }
      expect_close(read(ascending, DType::kF64), as_double, kExact, "f64");
      expect_close(read(ascending, DType::kF32), rounded(as_double, DType::kF32), kExact, "f32");
    }
}

// What is lost in f32, and in f64, is kept: 2^19 + 2^-40 - 2^19.
TEST_P(ExactParity, CancellationLosesNothing) {
  const ExactSum sum = zero_sum(2);
  for (const double x : {0x1p19, 0x1p-40, -0x1p19}) add(on().put({x, -x}, dtype(), {2}), sum);
  expect_close(read(sum, DType::kF32), Values{0x1p-40, -0x1p-40}, kExact, "sum");
}

// Rows with ids, some of them often, are added where a loop over tokens would add them.
TEST_P(ExactParity, RowsAreAddedByTheirIds) {
  for (const std::int64_t c : {1, 3, 64, 200})
    for (const std::int64_t tokens : {0, 1, 700}) {
      const std::int64_t rows = 11;
      const Values ids = random_integers(tokens, rows, 6), src = terms(tokens * c, 7, dtype());
      std::vector<Int128> expected(static_cast<std::size_t>(rows * c));
      for (std::int64_t i = 0; i < tokens * c; ++i)
        expected[static_cast<std::size_t>(
            static_cast<std::int64_t>(ids[static_cast<std::size_t>(i / c)]) * c + i % c)] +=
            units_of(src[static_cast<std::size_t>(i)]);
      const ExactSum sum = zero_sum(rows * c);
      add(on().put(src, dtype(), {tokens, c}), sum, on().put(ids, DType::kI32, {tokens}));
      const auto high = integers(sum.high), low = integers(sum.low);
      for (std::size_t j = 0; j < expected.size(); ++j)
        ASSERT_TRUE(units_of(high[j], low[j]) == expected[j]) << "element " << j;
      EXPECT_EQ(integers(sum.invalid), (std::vector<std::int64_t>{0}));
    }
}

// Terms without a place are counted, with ids and without, add nothing, and spoil the reading.
TEST_P(ExactParity, WhatCannotBeAddedIsCounted) {
  const double infinity = std::numeric_limits<double>::infinity();
  const double largest = rounded({0x1p20 - 0x1p12}, dtype())[0];
  const Values src{std::nan(""), 1.5, infinity, -infinity, 0x1p20, -0x1p20, largest, -largest};
  const ExactSum sum = zero_sum(8);
  add(on().put(src, dtype(), {8}), sum);
  EXPECT_EQ(integers(sum.invalid), (std::vector<std::int64_t>{5}));
  const auto high = integers(sum.high);
  for (const std::size_t j : {0u, 2u, 3u, 4u, 5u}) EXPECT_EQ(high[j], 0) << j;
  EXPECT_EQ(high[1], 3 << 19);
  EXPECT_EQ(high[6], units_of(largest) >> 40);
  EXPECT_EQ(high[7], -high[6]);
  for (const DType type : {DType::kF32, DType::kF64})
    for (const double x : read(sum, type)) EXPECT_TRUE(std::isnan(x));

  const ExactSum scattered = zero_sum(4);
  add(on().put(src, dtype(), {4, 2}), scattered, on().put({1, 1, 0, 1}, DType::kI32, {4}));
  EXPECT_EQ(integers(scattered.invalid), (std::vector<std::int64_t>{5}));
  EXPECT_TRUE(std::isnan(read(scattered, DType::kF32)[0]));
}

// Each block's product in f32, the sum of blocks exactly: integers, so that products are exact too.
TEST_P(ExactParity, MatmulAddsBlocks) {
  const std::vector<std::int64_t> cases[] = {{0, 128, 256, 300}, {0, 1, 1, 7}, {0}, {0, 130}};
  for (const std::vector<std::int64_t>& blocks : cases)
    for (const auto& [m, n] : {std::pair<std::int64_t, std::int64_t>{1, 1}, {70, 300}, {5, 64}}) {
      const std::int64_t t = blocks.back();
      const Values a = random_integers(t * m, 100, 8), b = random_integers(t * n, 100, 9);
      const ExactSum sum = zero_sum(m * n);
      const ExactMatmulArgs args{.a = on().put(a, dtype(), {t, m}),
                                 .b = on().put(b, dtype(), {t, n}),
                                 .row_blocks = blocks,
                                 .sum = sum};
      kernels().exact_matmul(args, stream());
      kernels().exact_matmul(args, stream());
      Values expected = reference::matmul(a, b, m, n, t, true, false);
      for (double& x : expected) x *= 2;
      expect_close(read(sum, DType::kF64), expected, kExact, "sum", {.shape = {m, n}});
      EXPECT_EQ(integers(sum.invalid), (std::vector<std::int64_t>{0}));
    }
}

// The terms are the blocks' products as matmul makes them, whatever the blocks before and after.
TEST_P(ExactParity, MatmulTermsAreTheBlocksAlone) {
  const std::int64_t m = 70, n = 300, t = 300;
  const std::vector<std::int64_t> blocks{0, 128, 256, t};
  const Tensor a = on().put(values(t * m, 10), dtype(), {t, m});
  const Tensor b = on().put(values(t * n, 11), dtype(), {t, n});
  const ExactSum together = zero_sum(m * n), apart = zero_sum(m * n);
  kernels().exact_matmul({.a = a, .b = b, .row_blocks = blocks, .sum = together}, stream());
  for (const std::size_t i : {2u, 0u, 1u}) {
    const std::int64_t begin = blocks[i], count = blocks[i + 1] - begin;
    const std::int64_t one[] = {0, count};
    kernels().exact_matmul(
        {.a = a.rows(begin, count), .b = b.rows(begin, count), .row_blocks = one, .sum = apart},
        stream());
  }
  EXPECT_EQ(integers(together.high), integers(apart.high));
  EXPECT_EQ(integers(together.low), integers(apart.low));
  expect_close(read(together, DType::kF64),
               reference::matmul(values(t * m, 10), values(t * n, 11), m, n, t, true, false),
               sum_tolerance(DType::kF32, t), "sum", {.shape = {m, n}});
}

TEST_P(ExactParity, MatmulCountsWhatCannotBeAdded) {
  Values a(256, 1.0), b(256, 1.0);
  a[3] = std::nan("");
  const std::int64_t blocks[] = {0, 64, 128};
  const ExactSum sum = zero_sum(4);
  kernels().exact_matmul({.a = on().put(a, dtype(), {128, 2}),
                          .b = on().put(b, dtype(), {128, 2}),
                          .row_blocks = blocks,
                          .sum = sum},
                         stream());
  EXPECT_EQ(integers(sum.invalid), (std::vector<std::int64_t>{2}));
}

TEST_P(ExactParity, ReadMayAccumulate) {
  const ExactSum sum = zero_sum(3);
  add(on().put({1, -2, 0.5}, dtype(), {3}), sum);
  add(on().put({0.25, 8, 0}, dtype(), {3}), sum);
  for (const DType type : {DType::kF32, DType::kF64}) {
    const Tensor dst = on().put({10, 20, 30}, type, {3});
    kernels().exact_read({.sum = sum, .dst = dst, .mode = GradMode::kAccumulate}, stream());
    expect_close(on().get(dst), Values{11.25, 26, 30.5}, kExact, "dst");
    kernels().exact_read({.sum = sum, .dst = dst}, stream());
    expect_close(on().get(dst), Values{1.25, 6, 0.5}, kExact, "dst");
  }
}

// Halves that grew apart, as sums of many terms over many ranks do.
TEST_P(ExactParity, ReadCarriesFromLowToHigh) {
  const std::int64_t one = 1;
  const std::vector<std::int64_t> high{5, -1, (one << 52) - 7, -3, -(one << 22)};
  const std::vector<std::int64_t> low{one << 60, (one << 40) + 1, -(one << 61) + 12345,
                                      -(one << 62) - 999, (one << 62) + 999};
  Values expected;
  for (std::size_t i = 0; i < high.size(); ++i)
    expected.push_back(std::ldexp(static_cast<double>(units_of(high[i], low[i])), -60));
  const ExactSum sum{integers(high), integers(low), integers(std::vector<std::int64_t>{0})};
  expect_close(read(sum, DType::kF64), expected, kExact, "f64");
  expect_close(read(sum, DType::kF32), rounded(expected, DType::kF32), kExact, "f32");
}

}  // namespace
}  // namespace farspan::testing
