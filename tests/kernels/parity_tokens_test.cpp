// Rotary tables and rotation, embedding and cross-entropy on every row against the reference.
#include <gtest/gtest.h>

#include <cmath>

#include "support/compare.h"
#include "support/parity_row.h"
#include "support/reference.h"

namespace farspan::testing {
namespace {

using reference::Values;

class TokensParity : public ParityTest {};
INSTANTIATE_TEST_SUITE_P(Rows, TokensParity, ::testing::ValuesIn(parity_rows()), name_of_row);

Values inverse_frequencies(std::int64_t half, double theta) {
  Values f;
  for (std::int64_t j = 0; j < half; ++j)
    f.push_back(std::pow(theta, -static_cast<double>(j) / static_cast<double>(half)));
  return f;
}

Values iota(std::int64_t n, std::int64_t first) {
  Values v;
  for (std::int64_t i = 0; i < n; ++i) v.push_back(static_cast<double>(first + i));
  return v;
}

// Half an ulp of an f32 at 1 (6e-8), and the angle's own error in double (1e-10).
constexpr Tolerance kAngle{6.1e-8, 0};

TEST_P(TokensParity, RopeTableIsExactToF32) {
  const Values jumps{1048575, 0, 5, 255, 256, 257, 1048575, 999999, 511, 4};
  const std::vector<Values> cases{{}, {7}, jumps, iota(1500, 0), iota(600, 1048576 - 600)};
  for (const Values& positions : cases)
    for (const std::int64_t half : {std::int64_t{1}, std::int64_t{19}, std::int64_t{64}}) {
      const auto t = static_cast<std::int64_t>(positions.size());
      const Values frequencies = inverse_frequencies(half, 500000);
      const Tensor cos = on().poisoned(DType::kF32, {t, half});
      const Tensor sin = on().poisoned(DType::kF32, {t, half});
      kernels().rope_table({.positions = on().put(positions, DType::kI32, {t}),
                            .inv_freq = on().put(frequencies, DType::kF64, {half}),
                            .cos = cos,
                            .sin = sin},
                           stream());
      const auto expected = reference::rope_tables(positions, frequencies, 1.0);
      expect_close(on().get(cos), expected.cos, kAngle, "cos", {.shape = {t, half}});
      expect_close(on().get(sin), expected.sin, kAngle, "sin", {.shape = {t, half}});
    }
}

TEST_P(TokensParity, RopeTableScalesAndFollowsNewFrequencies) {
  const Values positions = iota(300, 1000);
  for (const double theta : {10000.0, 1000000.0}) {
    const Values frequencies = inverse_frequencies(16, theta);
    const Tensor cos = on().poisoned(DType::kF32, {300, 16});
    const Tensor sin = on().poisoned(DType::kF32, {300, 16});
    kernels().rope_table({.positions = on().put(positions, DType::kI32, {300}),
                          .inv_freq = on().put(frequencies, DType::kF64, {16}),
                          .cos = cos,
                          .sin = sin,
                          .attention_scale = 1.25},
                         stream());
    const auto expected = reference::rope_tables(positions, frequencies, 1.25);
    expect_close(on().get(cos), expected.cos, kernel_tolerance(DType::kF32), "cos");
    expect_close(on().get(sin), expected.sin, kernel_tolerance(DType::kF32), "sin");
  }
}

// Tokens of documents with frequencies of their own, in any order; bitwise those of one table
// alone.
TEST_P(TokensParity, RopeTableOfEachToken) {
  const std::int64_t t = 700, half = 19, tables = 3;
  Values positions = iota(t, 0), ids, frequencies;
  for (std::int64_t i = 0; i < t; ++i) {
    positions[static_cast<std::size_t>(i)] = static_cast<double>(i * 1499 % 1048576);
    ids.push_back(static_cast<double>(i % 7 == 0 ? 2 : i / 350));
  }
  for (const double theta : {10000.0, 500000.0, 8000000.0})
    for (const double f : inverse_frequencies(half, theta)) frequencies.push_back(f);
  const Tensor places = on().put(positions, DType::kI32, {t});
  const Tensor cos = on().poisoned(DType::kF32, {t, half});
  const Tensor sin = on().poisoned(DType::kF32, {t, half});
  kernels().rope_table({.positions = places,
                        .inv_freq = on().put(frequencies, DType::kF64, {tables, half}),
                        .cos = cos,
                        .sin = sin,
                        .attention_scale = 1.25,
                        .table_ids = on().put(ids, DType::kI32, {t})},
                       stream());
  const Values cosines = on().get(cos), sines = on().get(sin);
  for (std::int64_t k = 0; k < tables; ++k) {
    const Values own(frequencies.begin() + k * half, frequencies.begin() + (k + 1) * half);
    const Tensor cos_k = on().poisoned(DType::kF32, {t, half});
    const Tensor sin_k = on().poisoned(DType::kF32, {t, half});
    kernels().rope_table({.positions = places,
                          .inv_freq = on().put(own, DType::kF64, {half}),
                          .cos = cos_k,
                          .sin = sin_k,
                          .attention_scale = 1.25},
                         stream());
    const auto expected = reference::rope_tables(positions, own, 1.25);
    const Values alone = on().get(cos_k), alone_sin = on().get(sin_k);
    for (std::size_t i = 0; i < cosines.size(); ++i) {
      if (ids[i / half] != static_cast<double>(k)) continue;
      ASSERT_EQ(cosines[i], alone[i]) << "token " << i / half << ", pair " << i % half;
      ASSERT_EQ(sines[i], alone_sin[i]) << "token " << i / half << ", pair " << i % half;
      ASSERT_NEAR(cosines[i], expected.cos[i], 1.3e-7) << "token " << i / half;
      ASSERT_NEAR(sines[i], expected.sin[i], 1.3e-7) << "token " << i / half;
    }
  }
}

TEST_P(TokensParity, RopeApply) {
  const std::int64_t shapes[][3] = {{0, 2, 8}, {1, 1, 2}, {5, 3, 38}, {40, 4, 64}, {300, 2, 128}};
  for (const auto& [t, heads, dim] : shapes) {
    const Values x = values(t * heads * dim, 40);
    auto tables = reference::rope_tables(iota(t, 100), inverse_frequencies(dim / 2, 10000), 1);
    tables.cos = rounded(tables.cos, DType::kF32);
    tables.sin = rounded(tables.sin, DType::kF32);
    const Tensor cos = on().put(tables.cos, DType::kF32, {t, dim / 2});
    const Tensor sin = on().put(tables.sin, DType::kF32, {t, dim / 2});
    for (const bool inverse : {false, true}) {
      const Tensor tx = on().put(x, dtype(), {t, heads, dim});
      kernels().rope_apply({.x = tx, .cos = cos, .sin = sin, .inverse = inverse}, stream());
      expect_close(on().get(tx), reference::rope_apply(x, tables, heads, dim, inverse),
                   kernel_tolerance(dtype()), "x", {.shape = {t, heads, dim}, .seed = 40});
    }
  }
}

TEST_P(TokensParity, Embedding) {
  const std::int64_t shapes[][3] = {{0, 5, 8}, {1, 1, 1}, {70, 9, 33}, {900, 300, 64}};
  for (const auto& [t, v, c] : shapes) {
    const Values ids = random_integers(t, v, 50);
    const Values table = values(v * c, 51);
    const Values dout = values(t * c, 52);
    const Tensor tids = on().put(ids, DType::kI32, {t});
    const Tensor out = on().poisoned(dtype(), {t, c});
    kernels().embedding_forward(
        {.ids = tids, .table = on().put(table, dtype(), {v, c}), .out = out}, stream());
    const auto width = static_cast<std::size_t>(c);
    expect_close(on().get(out), reference::embedding_forward(ids, table, width), kExact, "out");
    Values expected(static_cast<std::size_t>(v * c), 0.5);
    const Tensor dtable = on().put(expected, DType::kF32, {v, c});
    kernels().embedding_backward(
        {.ids = tids, .dout = on().put(dout, dtype(), {t, c}), .dtable = dtable}, stream());
    reference::embedding_backward(ids, dout, expected, width);
    expect_close(on().get(dtable), expected, sum_tolerance(DType::kF32, 50), "dtable",
                 {.shape = {v, c}, .seed = 52});
  }
}

struct LossOutputs {
  Tensor dlogits, nll, loss_sum, valid_count;
};

TEST_P(TokensParity, CrossEntropy) {
  const std::int64_t shapes[][2] = {{0, 10}, {1, 1}, {9, 33}, {150, 260}, {3, 5000}};
  for (const auto& [n, v] : shapes) {
    const Values logits = rounded(random_values(n * v, 60, 4), DType::kF32);
    Values labels = random_integers(n, v, 61);
    for (std::size_t i = 1; i < labels.size(); i += 3) labels[i] = -100;
    const auto expected = reference::cross_entropy(logits, labels, static_cast<std::size_t>(v));
    const LossOutputs out{on().poisoned(dtype(), {n, v}), on().poisoned(DType::kF32, {n}),
                          on().put({100}, DType::kF64, {1}), on().put({7}, DType::kF64, {1})};
    kernels().cross_entropy({.logits = on().put(logits, DType::kF32, {n, v}),
                             .labels = on().put(labels, DType::kI32, {n}),
                             .dlogits = out.dlogits,
                             .nll = out.nll,
                             .loss_sum = out.loss_sum,
                             .valid_count = out.valid_count},
                            stream());
    expect_close(on().get(out.dlogits), expected.dlogits, kernel_tolerance(dtype()), "dlogits",
                 {.shape = {n, v}, .seed = 60});
    expect_close(on().get(out.nll), expected.nll, kernel_tolerance(DType::kF32), "nll");
    expect_close(on().get(out.loss_sum), Values{100 + expected.loss_sum}, kLossTolerance, "loss");
    EXPECT_EQ(on().get(out.valid_count)[0], 7 + expected.valid_count);
  }
}

TEST_P(TokensParity, CrossEntropyInPlaceAndForEvaluation) {
  const Values logits = rounded(random_values(4 * 50, 62, 4), DType::kF32);
  const Values labels{3, -1, 49, 0};
  const auto expected = reference::cross_entropy(logits, labels, 50);
  const Tensor t = on().put(logits, DType::kF32, {4, 50});
  const Tensor tl = on().put(labels, DType::kI32, {4});
  const Tensor loss = on().put({0}, DType::kF64, {1});
  const Tensor valid = on().put({0}, DType::kF64, {1});
  kernels().cross_entropy({.logits = t, .labels = tl, .loss_sum = loss, .valid_count = valid},
                          stream());
  expect_close(on().get(t), logits, kExact, "logits are only read");
  kernels().cross_entropy(
      {.logits = t, .labels = tl, .dlogits = t, .loss_sum = loss, .valid_count = valid}, stream());
  expect_close(on().get(t), expected.dlogits, kernel_tolerance(DType::kF32), "dlogits");
  expect_close(on().get(loss), Values{2 * expected.loss_sum}, kLossTolerance, "loss");
}

TEST_P(TokensParity, CrossEntropyOfExtremeLogits) {
  const Values logits{1e30, -1e30, 0, -1e4, 1e4, 9999, std::nan(""), 0, 0};
  const Tensor nll = on().poisoned(DType::kF32, {3});
  const Tensor loss = on().put({0}, DType::kF64, {1});
  kernels().cross_entropy({.logits = on().put(logits, DType::kF32, {3, 3}),
                           .labels = on().put({0, 2, 1}, DType::kI32, {3}),
                           .dlogits = on().poisoned(dtype(), {3, 3}),
                           .nll = nll,
                           .loss_sum = loss,
                           .valid_count = on().put({0}, DType::kF64, {1})},
                          stream());
  const Values got = on().get(nll);
  EXPECT_EQ(got[0], 0);
  EXPECT_NEAR(got[1], 1 + std::log1p(std::exp(-1)), 1e-6);
  EXPECT_TRUE(std::isnan(got[2]));
  EXPECT_TRUE(std::isnan(on().get(loss)[0]));
}

TEST_P(TokensParity, IntegersOutsideTheirTableAreRefused) {
  if (GetParam().kind != DeviceKind::kCpu)
    GTEST_SKIP() << "only the cpu backend reads values before the work";
  const Tensor table = on().put(Values(8, 1), dtype(), {4, 2});
  const Tensor out = on().poisoned(dtype(), {1, 2});
  for (const double id : {-1.0, 4.0})
    EXPECT_THROW(
        kernels().embedding_forward(
            {.ids = on().put({id}, DType::kI32, {1}), .table = table, .out = out}, stream()),
        InternalError);
  EXPECT_THROW(kernels().cross_entropy({.logits = on().put({1, 2}, DType::kF32, {1, 2}),
                                        .labels = on().put({2}, DType::kI32, {1}),
                                        .loss_sum = on().put({0}, DType::kF64, {1}),
                                        .valid_count = on().put({0}, DType::kF64, {1})},
                                       stream()),
               InternalError);
}

}  // namespace
}  // namespace farspan::testing
