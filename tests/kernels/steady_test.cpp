// Once a shape has been seen, no operation allocates. The exception is inside oneDNN, whose
// executor makes six or seven small objects for each matmul; that bound is held here, so that
// workspace or a primitive made anew would be seen.
#include <gtest/gtest.h>

#include <functional>
#include <utility>

#include "kernels/attention/allocations.h"
#include "support/device_values.h"
#include "support/sanitizers.h"

namespace farspan::testing {
namespace {

class Steady : public ::testing::TestWithParam<std::pair<CpuIsa, DType>> {
 protected:
  DType dtype() const { return GetParam().second; }
  Tensor compute(Shape shape) { return on_.put(random_values(shape.numel(), 1), dtype(), shape); }
  Tensor zeros(DType type, Shape shape) {
    return on_.put(std::vector<double>(static_cast<std::size_t>(shape.numel())), type, shape);
  }
  void expect_steady(const char* name, const std::function<void(Kernels&, Stream&)>& call,
                     std::int64_t limit = 0) {
    call(backend_->kernels(), backend_->stream());
    const std::int64_t before = num_allocations();
    call(backend_->kernels(), backend_->stream());
    EXPECT_LE(num_allocations() - before, limit) << name;
  }

  std::unique_ptr<Backend> backend_ =
      make_backend({.num_threads = kTestThreads, .cpu_isa = GetParam().first});
  DeviceValues on_{*backend_};
};
INSTANTIATE_TEST_SUITE_P(Rows, Steady,
                         ::testing::Values(std::pair{CpuIsa::kAuto, DType::kF32},
                                           std::pair{CpuIsa::kAuto, DType::kBF16},
                                           std::pair{CpuIsa::kPortable, DType::kBF16}));

TEST_P(Steady, Matmul) {
  const std::int64_t m = 300, n = 90, k = 200;
  for (const bool trans_a : {false, true})
    for (const bool trans_b : {false, true}) {
      const Tensor a = compute(trans_a ? Shape{k, m} : Shape{m, k});
      const Tensor b = compute(trans_b ? Shape{n, k} : Shape{k, n});
      const Tensor out = zeros(DType::kF32, {m, n});
      for (const GradMode mode : {GradMode::kOverwrite, GradMode::kAccumulate})
        expect_steady(
            "matmul",
            [&](Kernels& kernels, Stream& s) {
              kernels.matmul({a, b, out, trans_a, trans_b, mode}, s);
            },
            7);
    }
}

TEST_P(Steady, OperationsWithWorkspace) {
  const std::int64_t t = 500, c = 96, v = 70;
  const Tensor x = compute({t, c}), weight = compute({c}), dy = compute({t, c});
  const Tensor rstd = zeros(DType::kF32, {t}), dweight = zeros(DType::kF32, {c});
  expect_steady("rmsnorm_backward", [&](Kernels& k, Stream& s) {
    k.rmsnorm_backward(
        {.x = x, .weight = weight, .rstd = rstd, .dy = dy, .dx = dy, .dweight = dweight}, s);
  });
  const Tensor ids = on_.put(random_integers(t, v, 2), DType::kI32, {t});
  const Tensor frequencies = zeros(DType::kF64, {16});
  const Tensor cos = zeros(DType::kF32, {t, 16}), sin = zeros(DType::kF32, {t, 16});
  expect_steady("rope_table", [&](Kernels& k, Stream& s) {
    k.rope_table({.positions = ids, .inv_freq = frequencies, .cos = cos, .sin = sin}, s);
  });
  const Tensor logits = zeros(DType::kF32, {t, v}), dlogits = compute({t, v});
  const Tensor loss = zeros(DType::kF64, {1}), valid = zeros(DType::kF64, {1});
  expect_steady("cross_entropy", [&](Kernels& k, Stream& s) {
    k.cross_entropy({.logits = logits,
                     .labels = ids,
                     .dlogits = dlogits,
                     .loss_sum = loss,
                     .valid_count = valid},
                    s);
  });
  const Tensor dtable = zeros(DType::kF32, {v, c});
  expect_steady("embedding_backward", [&](Kernels& k, Stream& s) {
    k.embedding_backward({.ids = ids, .dout = dy, .dtable = dtable}, s);
  });
  const Tensor flat = zeros(DType::kF32, {200000});
  expect_steady("squared_norm",
                [&](Kernels& k, Stream& s) { k.squared_norm({.x = flat, .sum = loss}, s); });
}

}  // namespace
}  // namespace farspan::testing
