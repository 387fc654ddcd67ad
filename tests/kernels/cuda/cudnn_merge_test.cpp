// The kernel that puts cuDNN's partial results into the state of their rows, against double.
#include "kernels/cuda/attention/cudnn_merge.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/error.h"
#include "kernels/backend.h"
#include "kernels/cuda/cuda_device.h"
#include "support/compare.h"
#include "support/device_values.h"

namespace farspan::testing {
namespace {

using Values = std::vector<double>;

constexpr std::int64_t kTokens = 23, kHeads = 3, kDim = 72;
constexpr cuda::PartialRows kRows{.batch = 2, .q_len = 5, .q_begin = 4, .q_step = 9};
constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct State {
  Values acc, row_max, row_sum;
};

// As cudnn_merge.h says, row by row.
State merged(State s, const Values& out, const Values& lse) {
  for (std::int64_t b = 0; b < kRows.batch; ++b)
    for (std::int64_t i = 0; i < kRows.q_len; ++i)
      for (std::int64_t h = 0; h < kHeads; ++h) {
        const std::int64_t token = kRows.q_begin + b * kRows.q_step + i;
        const double fresh = lse[(b * kHeads + h) * kRows.q_len + i] * std::log2(std::exp(1.0));
        if (fresh == -kInfinity) continue;
        double &m = s.row_max[h * kTokens + token], &l = s.row_sum[h * kTokens + token];
        const double highest = std::max(m, fresh);
        const double keep = m == -kInfinity ? 0 : std::exp2(m - highest);
        const double take = std::exp2(fresh - highest);
        for (std::int64_t d = 0; d < kDim; ++d) {
          double& a = s.acc[(token * kHeads + h) * kDim + d];
          a = a * keep + out[((b * kRows.q_len + i) * kHeads + h) * kDim + d] * take;
        }
        m = highest;
        l = l * keep + take;
      }
  return s;
}

TEST(CudnnMerge, AddsPiecesToTheStateOfTheirRows) {
  std::unique_ptr<Backend> backend;
  try {
    backend = make_backend({.kind = DeviceKind::kCuda});
  } catch (const Error& absent) {
    if (absent.code() != ExitCode::kUsage) throw;
    GTEST_SKIP() << absent.text().what;
  }
  DeviceValues on(*backend);
  const Shape q_shape{kTokens, kHeads, kDim}, stats{kHeads, kTokens};
  const Shape out_shape{kRows.batch, kRows.q_len, kHeads, kDim};
  const Shape lse_shape{kRows.batch, kHeads, kRows.q_len};
  State state{rounded(random_values(q_shape.numel(), 1), DType::kF32),
              rounded(random_values(stats.numel(), 2, 20), DType::kF32),
              rounded(random_integers(stats.numel(), 50, 3), DType::kF32)};
  const Values out = rounded(random_values(out_shape.numel(), 4), DType::kBF16);
  Values lse = rounded(random_values(lse_shape.numel(), 5, 12), DType::kF32);
  lse[7] = -kInfinity;                          // a row that this piece shows nothing
  for (const std::int64_t row : {6, 30, 50}) {  // and some that have seen nothing so far
    state.row_max[row] = -kInfinity;
    state.row_sum[row] = 0;
    for (std::int64_t d = 0; d < kDim; ++d)
      state.acc[(row % kTokens * kHeads + row / kTokens) * kDim + d] = 0;
  }
  const AttentionForwardArgs args{.q = on.poisoned(DType::kBF16, q_shape),
                                  .acc = on.put(state.acc, DType::kF32, q_shape),
                                  .row_max = on.put(state.row_max, DType::kF32, stats),
                                  .row_sum = on.put(state.row_sum, DType::kF32, stats)};
  cuda::merge_partial(on.put(out, DType::kBF16, out_shape), on.put(lse, DType::kF32, lse_shape),
                      kRows, args, cuda::native(backend->stream()));
  const State expected = merged(state, out, lse);
  expect_close(on.get(args.acc), expected.acc, {1e-5, 1e-5}, "acc", {.shape = q_shape});
  expect_close(on.get(args.row_max), expected.row_max, {1e-6, 1e-6}, "row_max", {.shape = stats});
  expect_close(on.get(args.row_sum), expected.row_sum, {1e-6, 1e-5}, "row_sum", {.shape = stats});
}

}  // namespace
}  // namespace farspan::testing
