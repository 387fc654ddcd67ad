// Attention on a GPU by each kernel that may do it, against the double reference: our own, and
// cuDNN for what it is given. Over hops of a ring the error may grow by what
// parallel.attention_kernel promises. Needs a GPU; skipped with the reason where there is none.
#include <gtest/gtest.h>

#include <optional>

#include "core/error.h"
#include "kernels/attention/harness.h"
#include "kernels/backend.h"
#include "support/device_values.h"

namespace farspan::testing {
namespace {

struct DeviceResult {
  std::vector<double> out, lse, dq, dk, dv;
};

// As run_engine (harness.h), in bf16 on a backend. Throws what a kernel refuses.
DeviceResult run_on(Backend& backend, const TestCase& c, const AttentionProblem& p) {
  DeviceValues on(backend);
  Kernels& kernels = backend.kernels();
  Stream& stream = backend.stream();
  constexpr DType kCompute = DType::kBF16;
  const Shape q_shape{c.num_q, c.num_q_heads, c.head_dim};
  const Shape k_shape{c.num_k, c.num_kv_heads, c.head_dim}, stats{c.num_q_heads, c.num_q};
  const Tensor q = on.put(p.q, kCompute, q_shape), dout = on.put(p.dout, kCompute, q_shape);
  const Tensor k = on.put(p.k, kCompute, k_shape), v = on.put(p.v, kCompute, k_shape);
  const Tensor acc = on.poisoned(DType::kF32, q_shape), delta = on.poisoned(DType::kF32, stats);
  const Tensor row_max = on.poisoned(DType::kF32, stats), row_sum = on.poisoned(DType::kF32, stats);
  const Tensor out = on.poisoned(kCompute, q_shape), lse = on.poisoned(DType::kF32, stats);
  const auto zeros = [&](const Shape& shape) {
    return on.put(std::vector<double>(static_cast<std::size_t>(shape.numel())), DType::kF32, shape);
  };
  const Tensor dq = zeros(q_shape), dk = zeros(k_shape), dv = zeros(k_shape);
  const auto hops = c.hops.empty() ? std::vector<std::int64_t>{c.num_k} : c.hops;
  const auto scale = static_cast<float>(p.scale);
  std::int64_t begin = 0;
  for (std::size_t hop = 0; hop < hops.size(); begin += hops[hop], ++hop) {
    const auto slices = slices_of_hop(c, begin, hops[hop]);
    kernels.attention_forward({.q = q,
                               .k = k.rows(begin, hops[hop]),
                               .v = v.rows(begin, hops[hop]),
                               .acc = acc,
                               .row_max = row_max,
                               .row_sum = row_sum,
                               .slices = slices,
                               .scale = scale,
                               .first = hop == 0,
                               .last = hop + 1 == hops.size(),
                               .out = out,
                               .lse = lse},
                              stream);
  }
  kernels.attention_delta({.out = out, .dout = dout, .delta = delta}, stream);
  begin = 0;
  for (const std::int64_t count : hops) {
    const auto slices = slices_of_hop(c, begin, count);
    kernels.attention_backward({.q = q,
                                .k = k.rows(begin, count),
                                .v = v.rows(begin, count),
                                .dout = dout,
                                .lse = lse,
                                .delta = delta,
                                .dq = dq,
                                .dk = dk.rows(begin, count),
                                .dv = dv.rows(begin, count),
                                .slices = slices,
                                .scale = scale,
                                .deterministic = false,
                                .out = out},
                               stream);
    begin += count;
  }
  return {on.get(out), on.get(lse), on.get(dq), on.get(dk), on.get(dv)};
}

class AttentionKernels : public ::testing::TestWithParam<AttentionKernel> {
 protected:
  void SetUp() override {
    try {
      backend_ = make_backend({.kind = DeviceKind::kCuda, .attention_kernel = GetParam()});
    } catch (const Error& absent) {
      if (absent.code() != ExitCode::kUsage) throw;
      GTEST_SKIP() << absent.text().what;
    }
  }
  bool cudnn() const { return GetParam() == AttentionKernel::kCudnn; }
  // Nothing where this machine's cuDNN does not do the case: the reason is in `refused`.
  std::optional<DeviceResult> run(const TestCase& c, const AttentionProblem& p,
                                  std::string& refused) {
    try {
      return run_on(*backend_, c, p);
    } catch (const Error& e) {
      if (!cudnn() || e.code() != ExitCode::kUsage) throw;
      refused = e.text().what;
      return std::nullopt;
    }
  }

 private:
  std::unique_ptr<Backend> backend_;
};

AttentionSlice causal(std::int64_t q, std::int64_t k, std::int64_t length,
                      std::int64_t diagonal = 0) {
  return {.q_begin = q,
          .q_len = length,
          .k_begin = k,
          .k_len = length + diagonal,
          .kind = MaskKind::kCausal,
          .diagonal = diagonal};
}

std::vector<TestCase> cases() {
  std::vector<TestCase> all;
  for (const std::int64_t dim : {64, 96, 128, 256})
    all.push_back({fmt::format("causal_d{}", dim), 384, 384, 4, 2, dim, {causal(0, 0, 384)}});
  all.push_back({"full", 256, 512, 4, 1, 64, {{.q_len = 256, .k_len = 512}}});
  all.push_back({"keys_before", 256, 640, 4, 4, 64, {causal(0, 0, 256, 384)}});
  all.push_back({"batch", 512, 512, 2, 1, 64, {causal(0, 0, 256), causal(256, 256, 256)}});
  all.push_back({"two_lengths", 384, 384, 2, 1, 64, {causal(0, 0, 128), causal(128, 128, 256)}});
  all.push_back({"rows_that_see_nothing", 512, 512, 2, 1, 64, {causal(128, 128, 256)}});
  AttentionSlice band = causal(0, 0, 512);
  band.kind = MaskKind::kBand, band.window = 100;
  all.push_back({"window", 512, 512, 2, 1, 128, {band}});
  // Very negative scores: where a tail of keys has given NaN.
  all.push_back({"large", 256, 256, 2, 1, 64, {causal(0, 0, 256)}, {}, 6.0});
  return all;
}

TEST_P(AttentionKernels, MatchTheReference) {
  for (const TestCase& c : cases()) {
    const AttentionProblem p = make_problem(c, DType::kBF16);
    std::string refused;
    const auto got = run(c, p, refused);
    if (!got) GTEST_SKIP() << c.name << ": " << refused;
    const AttentionResult expected = reference_attention(p);
    for (std::size_t i = 0; i < expected.lse.size(); ++i)
      if (got->lse[i] != expected.lse[i]) {  // both -inf
        ASSERT_LE(std::abs(got->lse[i] - expected.lse[i]),
                  1e-4 * std::max(1.0, std::abs(expected.lse[i])))
            << c.name << " lse " << i;
      }
    // cuDNN rounds gradients to bf16 before they are added (1.7e-3 rms), and P before its products.
    const double more = cudnn() ? 1.5 : 1;
    EXPECT_LE(relative_l2(got->out, expected.out), 3e-3 * more) << c.name;
    // Where one key has nearly all the weight, dP - delta is a small difference, which delta's
    // share of the rounding of out does not shrink with (7e-3 on the CPU too).
    const double gradient = (c.magnitude > 1 ? 1.2e-2 : 6e-3) * more;
    EXPECT_LE(relative_l2(got->dq, expected.dq), gradient) << c.name;
    EXPECT_LE(relative_l2(got->dk, expected.dk), gradient) << c.name;
    EXPECT_LE(relative_l2(got->dv, expected.dv), 3e-3 * more) << c.name;
  }
}

// err(P) / err(1), both against double: keys in 8 hops and in one.
TEST_P(AttentionKernels, ErrorOverHopsOfARing) {
  const std::int64_t rows = 256, block = 256, hops = 8;
  TestCase one{"one", rows, block * hops, 4, 2, 64, {{.q_len = rows, .k_len = block * hops}}};
  TestCase ring = one;
  ring.name = "ring";
  ring.hops.assign(static_cast<std::size_t>(hops), block);
  const AttentionProblem p = make_problem(one, DType::kBF16);
  const AttentionResult expected = reference_attention(p);
  std::string refused;
  const auto whole = run(one, p, refused), parts = run(ring, p, refused);
  if (!whole || !parts) GTEST_SKIP() << refused;
  const double limit = cudnn() ? 1.4 : 1.1;
  const auto ratio = [&](const std::vector<double>& many, const std::vector<double>& single,
                         const std::vector<double>& reference) {
    return relative_l2(many, reference) / relative_l2(single, reference);
  };
  EXPECT_LE(ratio(parts->out, whole->out, expected.out), limit);
  EXPECT_LE(ratio(parts->dq, whole->dq, expected.dq), limit);
  EXPECT_LE(ratio(parts->dk, whole->dk, expected.dk), limit);
  EXPECT_LE(ratio(parts->dv, whole->dv, expected.dv), limit);
}

INSTANTIATE_TEST_SUITE_P(Gpu, AttentionKernels,
                         ::testing::Values(AttentionKernel::kOwn, AttentionKernel::kCudnn),
                         [](const auto& row) {
                           return row.param == AttentionKernel::kOwn ? "own" : "cudnn";
                         });

}  // namespace
}  // namespace farspan::testing
