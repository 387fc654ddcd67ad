// Squared norm, clipping gate and AdamW on every row.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "support/compare.h"
#include "support/parity_row.h"
#include "support/reference.h"

namespace farspan::testing {
namespace {

using reference::Values;

class OptimizerParity : public ParityTest {};
INSTANTIATE_TEST_SUITE_P(Rows, OptimizerParity, ::testing::ValuesIn(parity_rows()), name_of_row);

TEST_P(OptimizerParity, SquaredNorm) {
  for (const std::int64_t n : {0, 1, 31, 65536, 200001}) {
    const Values x = rounded(random_values(n, 70), DType::kF32);
    double expected = 0;
    for (const double v : x) expected += v * v;
    const Tensor tx = on().put(x, DType::kF32, {n});
    const Tensor sum = on().put({5}, DType::kF64, {1});
    kernels().squared_norm({.x = tx, .sum = sum}, stream());
    expect_close(on().get(sum), Values{5 + expected}, kNormTolerance, "accumulated");
    kernels().squared_norm({.x = tx, .sum = sum, .mode = GradMode::kOverwrite}, stream());
    expect_close(on().get(sum), Values{expected}, kNormTolerance, "overwritten");
  }
  const Tensor huge = on().put({1e30, 1e30}, DType::kF32, {2});  // squares overflow a float
  const Tensor sum = on().put({0}, DType::kF64, {1});
  kernels().squared_norm({.x = huge, .sum = sum}, stream());
  EXPECT_NEAR(on().get(sum)[0] / 2e60, 1, 1e-6);
}

struct Gate {
  double grad_scale, grad_norm, skip, applied, skipped;
};

class ClipParity : public OptimizerParity {
 protected:
  Gate clip(double sum_squares, double loss, double valid, double max_norm) {
    const ClipArgs args{.sum_squares = on().put({sum_squares}, DType::kF64, {1}),
                        .loss_sum = on().put({loss}, DType::kF64, {1}),
                        .valid_count = on().put({valid}, DType::kF64, {1}),
                        .max_norm = max_norm,
                        .grad_scale = on().poisoned(DType::kF32, {1}),
                        .grad_norm = on().poisoned(DType::kF64, {1}),
                        .skip = on().poisoned(DType::kI32, {1}),
                        .applied_steps = on().put({10}, DType::kI64, {1}),
                        .skipped_steps = on().put({20}, DType::kI64, {1})};
    kernels().clip(args, stream());
    return {on().get(args.grad_scale)[0], on().get(args.grad_norm)[0], on().get(args.skip)[0],
            on().get(args.applied_steps)[0], on().get(args.skipped_steps)[0]};
  }
};
INSTANTIATE_TEST_SUITE_P(Rows, ClipParity, ::testing::ValuesIn(parity_rows()), name_of_row);

TEST_P(ClipParity, ScalesByTokensAndNorm) {
  const Gate below = clip(16, 3, 8, 1.0);  // norm 4 / 8
  EXPECT_DOUBLE_EQ(below.grad_norm, 0.5);
  EXPECT_FLOAT_EQ(static_cast<float>(below.grad_scale), 1.0f / 8);
  EXPECT_EQ(below.skip, 0);
  EXPECT_EQ(below.applied, 11);
  EXPECT_EQ(below.skipped, 20);
  const Gate above = clip(1024, 3, 8, 1.0);  // norm 4: clipped to 1
  EXPECT_DOUBLE_EQ(above.grad_norm, 4);
  EXPECT_FLOAT_EQ(static_cast<float>(above.grad_scale), 0.25f / 8);
  EXPECT_FLOAT_EQ(static_cast<float>(clip(1024, 3, 8, 0).grad_scale), 1.0f / 8);
  EXPECT_FLOAT_EQ(static_cast<float>(clip(0, 3, 8, 1.0).grad_scale), 1.0f / 8);
}

TEST_P(ClipParity, SkipsWhatIsNotFinite) {
  const double inf = std::numeric_limits<double>::infinity();
  const double nan = std::nan("");
  const double cases[][3] = {{inf, 1, 8}, {nan, 1, 8}, {4, inf, 8}, {4, nan, 8}, {4, 1, 0}};
  for (const auto& [squares, loss, valid] : cases) {
    const Gate gate = clip(squares, loss, valid, 1.0);
    EXPECT_EQ(gate.skip, 1) << squares << " " << loss << " " << valid;
    EXPECT_EQ(gate.grad_scale, 0);
    EXPECT_EQ(gate.applied, 10);
    EXPECT_EQ(gate.skipped, 21);
  }
}

TEST_P(OptimizerParity, AdamWOverAHundredSteps) {
  for (const std::int64_t n : {0, 37, 33000}) {
    const Shape shape{n};
    Values p = rounded(random_values(n, 80), DType::kF32);
    Values m = reference::zeros(n);
    Values v = reference::zeros(n);
    const Tensor tp = on().put(p, DType::kF32, shape);
    const Tensor tm = on().put(m, DType::kF32, shape);
    const Tensor tv = on().put(v, DType::kF32, shape);
    const bool copies = dtype() == DType::kBF16;
    const Tensor working = copies ? on().poisoned(DType::kBF16, shape) : Tensor{};
    const int steps = n > 1000 ? 10 : 100;
    for (int step = 1; step <= steps; ++step) {
      const Values grad =
          rounded(random_values(n, 100 + static_cast<std::uint64_t>(step)), DType::kF32);
      const double lr = 1e-2f / static_cast<float>(step);
      kernels().adamw({.master = tp,
                       .m = tm,
                       .v = tv,
                       .grad = on().put(grad, DType::kF32, shape),
                       .working = working,
                       .grad_scale = on().put({0.25}, DType::kF32, {1}),
                       .skip = on().put({0}, DType::kI32, {1}),
                       .applied_steps = on().put({static_cast<double>(step)}, DType::kI64, {1}),
                       .lr = static_cast<float>(lr),
                       .beta1 = 0.9f,
                       .beta2 = 0.95f,
                       .eps = 1e-8f,
                       .weight_decay = 0.1f},
                      stream());
      reference::adamw(p, m, v, grad, step, {lr, 0.9f, 0.95f, 1e-8f, 0.1f, 0.25});
    }
    expect_close(on().get(tp), p, kOptimizerTolerance, "master", {.shape = shape, .seed = 80});
    expect_close(on().get(tm), m, kOptimizerTolerance, "m");
    expect_close(on().get(tv), v, kOptimizerTolerance, "v");
    if (copies)
      expect_close(on().get(working), rounded(on().get(tp), DType::kBF16), kExact, "working");
  }
}

TEST_P(OptimizerParity, AdamWTouchesNothingWhenSkipped) {
  const Values one(40, 1);
  const Tensor master = on().put(one, DType::kF32, {40});
  const Tensor m = on().put(one, DType::kF32, {40});
  const Tensor v = on().put(one, DType::kF32, {40});
  const Tensor working = on().put(one, DType::kBF16, {40});
  kernels().adamw({.master = master,
                   .m = m,
                   .v = v,
                   .grad = on().put(Values(40, std::nan("")), DType::kF32, {40}),
                   .working = working,
                   .grad_scale = on().put({0}, DType::kF32, {1}),
                   .skip = on().put({1}, DType::kI32, {1}),
                   .applied_steps = on().put({3}, DType::kI64, {1}),
                   .lr = 1},
                  stream());
  for (const Tensor& t : {master, m, v, working}) expect_close(on().get(t), one, kExact, "state");
}

}  // namespace
}  // namespace farspan::testing
