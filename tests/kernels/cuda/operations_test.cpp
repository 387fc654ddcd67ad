// What the CUDA operations could get wrong and the parity suites do not look at: many tokens of one
// id, views that begin anywhere, rows beyond the grid, infinities, the same bits every time.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "support/compare.h"
#include "support/parity_row.h"
#include "support/reference.h"

namespace farspan::testing {
namespace {

using reference::Values;

class CudaOperations : public ParityTest {
 protected:
  // `v` as a tensor that begins `skip` elements behind an aligned address.
  Tensor put_behind(std::int64_t skip, const Values& v, DType type, Shape shape) {
    Values longer(static_cast<std::size_t>(skip), 3.0);
    longer.insert(longer.end(), v.begin(), v.end());
    const auto n = static_cast<std::int64_t>(longer.size());
    return on().put(longer, type, {n}).rows(skip, n - skip).view(shape);
  }
  // The bytes of what `run` returns are the same for operands that begin at an aligned address and
  // for such as do not.
  void expect_same_anywhere(const std::function<std::vector<Tensor>(std::int64_t skip)>& run) {
    const auto bytes_of = [&](std::int64_t skip) {
      std::vector<std::vector<std::byte>> all;
      for (const Tensor& t : run(skip)) all.push_back(on().bytes(t));
      return all;
    };
    const auto aligned = bytes_of(0);
    for (const std::int64_t skip : {1, 2, 4}) EXPECT_EQ(bytes_of(skip), aligned) << skip;
    EXPECT_EQ(bytes_of(0), aligned) << "again";
  }
};
INSTANTIATE_TEST_SUITE_P(Rows, CudaOperations,
                         ::testing::ValuesIn(parity_rows_of(DeviceKind::kCuda)), name_of_row);

// Two of three tokens have one id, the rest few; more ids than one digit of the sort.
Values skewed_ids(std::int64_t tokens, std::int64_t vocab) {
  Values ids = random_integers(tokens, vocab, 3);
  const Values kind = random_integers(tokens, 6, 4);
  const std::int64_t middle = vocab / 2;
  for (std::size_t t = 0; t < ids.size(); ++t) {
    if (kind[t] < 4) ids[t] = static_cast<double>(middle);
    if (kind[t] == 4) ids[t] = static_cast<double>(vocab - 1);
  }
  return ids;
}

TEST_P(CudaOperations, EmbeddingGradientOfOftenRepeatedIds) {
  const std::int64_t shapes[][3] = {{5000, 1300, 8}, {600, 3, 5}, {257, 1, 1}, {256, 1, 16}};
  for (const auto& [tokens, vocab, c] : shapes) {
    const Values ids = skewed_ids(tokens, vocab), dout = values(tokens * c, 5);
    const Tensor tids = on().put(ids, DType::kI32, {tokens});
    const Tensor tdout = on().put(dout, dtype(), {tokens, c});
    const Values before(static_cast<std::size_t>(vocab * c), 0.5);
    std::vector<std::byte> first;
    for (int i = 0; i < 3; ++i) {
      const Tensor dtable = on().put(before, DType::kF32, {vocab, c});
      kernels().embedding_backward({.ids = tids, .dout = tdout, .dtable = dtable}, stream());
      if (i == 0) {
        first = on().bytes(dtable);
        Values expected = before;
        reference::embedding_backward(ids, dout, expected, static_cast<std::size_t>(c));
        expect_close(on().get(dtable), expected, {1e-7 * static_cast<double>(tokens), 1e-6},
                     "dtable", {.shape = {vocab, c}, .seed = 5});
      }
      ASSERT_EQ(on().bytes(dtable), first);
    }
  }
}

// The loader refuses such ids; should one come through, memory stays whole and the loss tells.
TEST_P(CudaOperations, IdsOutsideTheTableAreNotANumberAndTouchNothing) {
  const Tensor ids = on().put({1, -1, 4, 3, 2147483647}, DType::kI32, {5});
  const Tensor out = on().poisoned(dtype(), {5, 3});
  kernels().embedding_forward(
      {.ids = ids, .table = on().put(Values(12, 2.0), dtype(), {4, 3}), .out = out}, stream());
  const Values got = on().get(out);
  for (std::size_t i = 0; i < got.size(); ++i)
    EXPECT_EQ(std::isnan(got[i]), i / 3 != 0 && i / 3 != 3) << i;
  const Tensor dtable = on().put(Values(12, 0.0), DType::kF32, {4, 3});
  kernels().embedding_backward(
      {.ids = ids, .dout = on().put(Values(15, 1.0), dtype(), {5, 3}), .dtable = dtable}, stream());
  expect_close(on().get(dtable), Values{0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1}, kExact, "dtable");
}

TEST_P(CudaOperations, NormsOfRowsThatBeginAnywhere) {
  // One warp a row; a block a row; more than registers hold.
  const std::int64_t shapes[][2] = {{9, 64}, {5, 1032}, {3, 8192 + 64}, {2, 16384 + 128}};
  for (const auto& [t, c] : shapes) {
    const Values x = values(t * c, 6), b = values(t * c, 7), w = values(c, 8);
    const Values dy = values(t * c, 9), ones(static_cast<std::size_t>(c), 1.0);
    expect_same_anywhere([&, t = t, c = c](std::int64_t skip) {
      const auto put = [&](const Values& v) { return put_behind(skip, v, dtype(), {t, c}); };
      const Tensor weight = put_behind(skip, w, dtype(), {c});
      const Tensor sum = put(x), y = put(x), rstd = on().poisoned(DType::kF32, {t});
      kernels().rmsnorm_forward(
          {.x = put(x), .weight = weight, .y = y, .rstd = rstd, .residual = put(b), .sum = sum},
          stream());
      const Tensor dx = put(x), dweight = on().put(ones, DType::kF32, {c});
      kernels().rmsnorm_backward({.x = sum,
                                  .weight = weight,
                                  .rstd = rstd,
                                  .dy = put(dy),
                                  .dx = dx,
                                  .dweight = dweight,
                                  .dx_mode = GradMode::kAccumulate},
                                 stream());
      return std::vector{sum, y, rstd, dx, dweight};
    });
  }
}

TEST_P(CudaOperations, LongNormsAgainstTheReference) {
  for (const std::int64_t c : {4096 + 8, 16384 + 136}) {
    const std::int64_t t = 7;
    const Values x = values(t * c, 10), w = values(c, 11), dy = values(t * c, 12);
    const Tensor tx = on().put(x, dtype(), {t, c}), tw = on().put(w, dtype(), {c});
    const Tensor y = on().poisoned(dtype(), {t, c}), rstd = on().poisoned(DType::kF32, {t});
    kernels().rmsnorm_forward({.x = tx, .weight = tw, .y = y, .rstd = rstd}, stream());
    const auto forward = reference::rmsnorm_forward(x, w, 1e-5f);
    expect_close(on().get(y), forward.y, kernel_tolerance(dtype()), "y", {.shape = {t, c}});
    const Tensor dx = on().put(dy, dtype(), {t, c});
    const Tensor dweight = on().put(Values(static_cast<std::size_t>(c), 0.0), DType::kF32, {c});
    kernels().rmsnorm_backward(
        {.x = tx, .weight = tw, .rstd = rstd, .dy = dx, .dx = dx, .dweight = dweight}, stream());
    const auto expected = reference::rmsnorm_backward(x, w, forward.rstd, dy);
    expect_close(on().get(dx), expected.dx, sum_tolerance(dtype(), 20), "dx", {.shape = {t, c}});
    expect_close(on().get(dweight), expected.dweight, sum_tolerance(DType::kF32, 20), "dweight");
  }
}

TEST_P(CudaOperations, ElementsThatBeginAnywhere) {
  const std::int64_t n = 5003;
  const Values a = values(n, 13), b = values(n, 14), c = values(n, 15);
  expect_same_anywhere([&](std::int64_t skip) {
    const auto put = [&](const Values& v) { return put_behind(skip, v, dtype(), {1, n}); };
    const Tensor sum = put(a), gated = put(a), dgate = put(a), dup = put(a);
    kernels().add({.a = put(a), .b = put(b), .out = sum}, stream());
    kernels().swiglu_forward({.gate = put(a), .up = put(b), .out = gated}, stream());
    kernels().swiglu_backward(
        {.gate = put(a), .up = put(b), .dout = put(c), .dgate = dgate, .dup = dup}, stream());
    const Tensor wide = put_behind(skip, a, DType::kF32, {1, n}), copied = put(b), filled = put(a);
    kernels().copy({.src = wide, .dst = copied}, stream());
    kernels().fill({.dst = filled, .value = 2.5}, stream());
    return std::vector{sum, gated, dgate, dup, copied, filled};
  });
}

TEST_P(CudaOperations, OptimizerOfTensorsThatBeginAnywhere) {
  const std::int64_t n = 20011;
  const Values p = rounded(random_values(n, 16), DType::kF32);
  const Values g = rounded(random_values(n, 17), DType::kF32);
  const Values v(static_cast<std::size_t>(n), 0.25);
  expect_same_anywhere([&](std::int64_t skip) {
    const auto put = [&](const Values& x) { return put_behind(skip, x, DType::kF32, {n}); };
    const Tensor norm = on().put({0}, DType::kF64, {1});
    const Tensor grad = put(g);
    kernels().squared_norm({.x = grad, .sum = norm}, stream());
    const AdamWArgs args{.master = put(p),
                         .m = put(g),
                         .v = put(v),
                         .grad = grad,
                         .working = put_behind(skip, p, DType::kBF16, {n}),
                         .grad_scale = on().put({0.5}, DType::kF32, {1}),
                         .skip = on().put({0}, DType::kI32, {1}),
                         .applied_steps = on().put({3}, DType::kI64, {1}),
                         .lr = 1e-2f,
                         .weight_decay = 0.1f};
    kernels().adamw(args, stream());
    return std::vector{norm, args.master, args.m, args.v, args.working};
  });
}

// Rows of the 48 KiB of shared memory that come without asking, rows longer than what a block
// keeps, of a length that no vector divides, from any address.
TEST_P(CudaOperations, CrossEntropyOfLongRows) {
  for (const std::int64_t v : {12288, 60001, 60004}) {
    const std::int64_t n = 2;
    const Values logits = rounded(random_values(n * v, 18, 3), DType::kF32);
    const Values labels{static_cast<double>(v - 1), 7};
    const Tensor tlabels = on().put(labels, DType::kI32, {n});
    const auto expected = reference::cross_entropy(logits, labels, static_cast<std::size_t>(v));
    expect_same_anywhere([&](std::int64_t skip) {
      const Tensor dlogits = put_behind(skip, logits, dtype(), {n, v});
      const Tensor nll = on().poisoned(DType::kF32, {n}), loss = on().put({0}, DType::kF64, {1});
      kernels().cross_entropy({.logits = put_behind(skip, logits, DType::kF32, {n, v}),
                               .labels = tlabels,
                               .dlogits = dlogits,
                               .nll = nll,
                               .loss_sum = loss,
                               .valid_count = on().put({0}, DType::kF64, {1})},
                              stream());
      if (skip == 0) {
        expect_close(on().get(dlogits), expected.dlogits, kernel_tolerance(dtype()), "dlogits");
        expect_close(on().get(nll), expected.nll, kernel_tolerance(DType::kF32), "nll");
      }
      return std::vector{dlogits, nll, loss};
    });
  }
}

// Minus infinity is a class that cannot be; a row of nothing else, an infinity, a NaN anywhere and
// a label that is none make the loss NaN.
TEST_P(CudaOperations, CrossEntropyOfInfinities) {
  const double inf = std::numeric_limits<double>::infinity();
  const std::int64_t v = 3000;
  const Values masked = [&] {
    Values row(static_cast<std::size_t>(v), -inf);
    row[2999] = row[1] = 5;
    return row;
  }();
  const auto run = [&](const Values& row, double label) {
    const Tensor x = on().put(row, DType::kF32, {1, v});
    const Tensor nll = on().poisoned(DType::kF32, {1});
    kernels().cross_entropy({.logits = x,
                             .labels = on().put({label}, DType::kI32, {1}),
                             .dlogits = x,
                             .nll = nll,
                             .loss_sum = on().put({0}, DType::kF64, {1}),
                             .valid_count = on().put({0}, DType::kF64, {1})},
                            stream());
    return std::pair{on().get(nll)[0], on().get(x)};
  };
  const auto [nll, dlogits] = run(masked, 1);
  EXPECT_NEAR(nll, std::log(2.0), 1e-6);
  EXPECT_NEAR(dlogits[1], -0.5, 1e-6);
  EXPECT_NEAR(dlogits[2999], 0.5, 1e-6);
  EXPECT_EQ(dlogits[0], 0);
  EXPECT_EQ(dlogits[2998], 0);
  EXPECT_TRUE(std::isnan(run(Values(static_cast<std::size_t>(v), -inf), 1).first));
  EXPECT_TRUE(std::isnan(run(masked, 3000).first));
  for (const double bad : {inf, std::nan("")})
    for (const std::size_t at : {0u, 1u, 1500u, 2999u}) {
      Values row = masked;
      row[at] = bad;
      const auto [loss, gradient] = run(row, 1);
      EXPECT_TRUE(std::isnan(loss)) << bad << " at " << at;
      for (const double g : gradient) ASSERT_TRUE(std::isnan(g)) << bad << " at " << at;
    }
}

// More rows than the grid of a loop over rows has.
TEST_P(CudaOperations, RowsBeyondTheGrid) {
  const std::int64_t rows = 2200, cols = 257;
  const Values x = values(rows * cols, 19);
  const Tensor src = on().put(x, dtype(), {rows, cols});
  const Tensor dst = on().poisoned(DType::kF32, {rows, 300});
  kernels().copy_2d(
      {.src = src, .dst = dst, .rows = rows, .cols = cols, .src_stride = cols, .dst_stride = 300},
      stream());
  const Values got = on().get(dst);
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < 300; ++c)
      ASSERT_EQ(got[static_cast<std::size_t>(r * 300 + c)],
                c < cols ? x[static_cast<std::size_t>(r * cols + c)] : -12345.0)
          << r << " " << c;
}

}  // namespace
}  // namespace farspan::testing
