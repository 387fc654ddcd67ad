// Legend: T tokens   H query heads   K key/value heads   D head dim
#include "app/self_check.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <vector>

#include "core/rng.h"

namespace farspan::app {
namespace {

std::vector<float> random_floats(std::int64_t count, std::uint64_t seed) {
  const CounterRng rng(seed, stream_id("doctor"));
  std::vector<float> out(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<float>(rng.normal(i));
  return out;
}

// Largest difference over largest reference; infinity when something is not finite.
double relative_error(const std::vector<float>& got, const std::vector<double>& want) {
  double worst = 0, scale = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double difference = std::abs(static_cast<double>(got[i]) - want[i]);
    if (!std::isfinite(difference)) return std::numeric_limits<double>::infinity();
    worst = std::max(worst, difference);
    scale = std::max(scale, std::abs(want[i]));
  }
  return worst / scale;
}

double matmul_error(Backend& backend) {
  constexpr std::int64_t kM = 61, kN = 83, kK = 97;
  std::vector<float> a = random_floats(kM * kK, 1), b = random_floats(kK * kN, 2);
  std::vector<float> out(static_cast<std::size_t>(kM * kN));
  backend.kernels().matmul({.a = host_tensor(a.data(), {kM, kK}),
                            .b = host_tensor(b.data(), {kK, kN}),
                            .out = host_tensor(out.data(), {kM, kN})},
                           backend.stream());
  std::vector<double> want(out.size(), 0.0);
  for (std::int64_t m = 0; m < kM; ++m)
    for (std::int64_t k = 0; k < kK; ++k)
      for (std::int64_t n = 0; n < kN; ++n)
        want[static_cast<std::size_t>(m * kN + n)] +=
            static_cast<double>(a[static_cast<std::size_t>(m * kK + k)]) *
            static_cast<double>(b[static_cast<std::size_t>(k * kN + n)]);
  return relative_error(out, want);
}

struct AttentionCase {
  static constexpr std::int64_t kT = 100, kH = 4, kK = 2, kD = 32;
  std::vector<float> q = random_floats(kT * kH * kD, 3);
  std::vector<float> k = random_floats(kT * kK * kD, 4);
  std::vector<float> v = random_floats(kT * kK * kD, 5);
  double scale = 1 / std::sqrt(static_cast<double>(kD));

  static std::size_t at(std::int64_t t, std::int64_t heads, std::int64_t head, std::int64_t d) {
    return static_cast<std::size_t>((t * heads + head) * kD + d);
  }

  // out[t, h] = softmax_j<=t(scale q.k_j) . v_j, in double.
  void reference_row(std::int64_t t, std::int64_t h, std::vector<double>& out) const {
    const std::int64_t kv = h / (kH / kK);
    std::vector<double> weights;
    double sum = 0;
    for (std::int64_t j = 0; j <= t; ++j) {
      double score = 0;
      for (std::int64_t d = 0; d < kD; ++d)
        score += static_cast<double>(q[at(t, kH, h, d)]) * static_cast<double>(k[at(j, kK, kv, d)]);
      weights.push_back(std::exp(score * scale));
      sum += weights.back();
    }
    for (std::int64_t j = 0; j <= t; ++j)
      for (std::int64_t d = 0; d < kD; ++d)
        out[at(t, kH, h, d)] +=
            weights[static_cast<std::size_t>(j)] / sum * static_cast<double>(v[at(j, kK, kv, d)]);
  }
};

double attention_error(Backend& backend) {
  using C = AttentionCase;
  C c;
  std::vector<float> acc(c.q.size()), out(c.q.size());
  std::vector<float> row_max(C::kH * C::kT), row_sum(row_max.size()), lse(row_max.size());
  const std::vector<AttentionSlice> slices = {
      {.q_len = C::kT, .k_len = C::kT, .kind = MaskKind::kCausal}};
  backend.kernels().attention_forward({.q = host_tensor(c.q.data(), {C::kT, C::kH, C::kD}),
                                       .k = host_tensor(c.k.data(), {C::kT, C::kK, C::kD}),
                                       .v = host_tensor(c.v.data(), {C::kT, C::kK, C::kD}),
                                       .acc = host_tensor(acc.data(), {C::kT, C::kH, C::kD}),
                                       .row_max = host_tensor(row_max.data(), {C::kH, C::kT}),
                                       .row_sum = host_tensor(row_sum.data(), {C::kH, C::kT}),
                                       .slices = slices,
                                       .scale = static_cast<float>(c.scale),
                                       .first = true,
                                       .last = true,
                                       .out = host_tensor(out.data(), {C::kT, C::kH, C::kD}),
                                       .lse = host_tensor(lse.data(), {C::kH, C::kT})},
                                      backend.stream());
  std::vector<double> want(out.size(), 0.0);
  for (std::int64_t t = 0; t < C::kT; ++t)
    for (std::int64_t h = 0; h < C::kH; ++h) c.reference_row(t, h, want);
  return relative_error(out, want);
}

template <typename T>
double matmul_gflops(Backend& backend) {
  constexpr std::int64_t kN = SelfCheck::kRateSize;
  constexpr int kRepeats = 4;  // the first one also prepares the kernel
  std::vector<T> a(kN * kN, T(0.5f)), b(kN * kN, T(0.25f)), out(kN * kN);
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < kRepeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    backend.kernels().matmul({.a = host_tensor(a.data(), {kN, kN}),
                              .b = host_tensor(b.data(), {kN, kN}),
                              .out = host_tensor(out.data(), {kN, kN})},
                             backend.stream());
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    if (i > 0) best = std::min(best, seconds.count());
  }
  return 2.0 * static_cast<double>(kN * kN * kN) / best / 1e9;
}

}  // namespace

SelfCheck self_check(Backend& backend) {
  return {.matmul_error = matmul_error(backend),
          .attention_error = attention_error(backend),
          .f32_gflops = matmul_gflops<float>(backend),
          .bf16_gflops = matmul_gflops<BFloat16>(backend)};
}

}  // namespace farspan::app
