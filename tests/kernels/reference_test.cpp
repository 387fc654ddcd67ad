// The oracles themselves: every backward against finite differences of its forward.
#include "support/reference.h"

#include <gtest/gtest.h>

#include "support/compare.h"
#include "support/device_values.h"
#include "support/gradcheck.h"

namespace farspan::testing {
namespace {

using reference::Values;

TEST(Reference, RmsNormGradients) {
  const std::int64_t t = 3, c = 7;
  const Values x = random_values(t * c, 1);
  const Values weight = random_values(c, 2);
  const Values dy = random_values(t * c, 3);
  const double eps = 1e-3;
  const auto forward = reference::rmsnorm_forward(x, weight, eps);
  const auto got = reference::rmsnorm_backward(x, weight, forward.rstd, dy);
  const auto of_x = [&](const Values& v) {
    return dot(dy, reference::rmsnorm_forward(v, weight, eps).y);
  };
  const auto of_weight = [&](const Values& v) {
    return dot(dy, reference::rmsnorm_forward(x, v, eps).y);
  };
  expect_close(got.dx, numeric_gradient(of_x, x), kGradcheckTolerance, "dx");
  expect_close(got.dweight, numeric_gradient(of_weight, weight), kGradcheckTolerance, "dweight");
}

TEST(Reference, MatmulGradientsAreMatmuls) {
  const std::int64_t m = 3, n = 4, k = 5;
  const Values a = random_values(m * k, 4);
  const Values b = random_values(n * k, 5);
  const Values dout = random_values(m * n, 6);
  const auto of_a = [&](const Values& v) {
    return dot(dout, reference::matmul(v, b, m, n, k, false, true));
  };
  const auto of_b = [&](const Values& v) {
    return dot(dout, reference::matmul(a, v, m, n, k, false, true));
  };
  expect_close(reference::matmul(dout, b, m, k, n), numeric_gradient(of_a, a), kGradcheckTolerance,
               "da");
  expect_close(reference::matmul(dout, a, n, k, m, true), numeric_gradient(of_b, b),
               kGradcheckTolerance, "db");
}

TEST(Reference, RopeGradientIsTheInverseRotation) {
  const std::int64_t heads = 2, dim = 6;
  const Values positions{0, 3, 1000};
  const auto tables = reference::rope_tables(positions, {1, 0.1, 0.01}, 1.0);
  const Values x = random_values(3 * heads * dim, 7);
  const Values dy = random_values(3 * heads * dim, 8);
  const auto of_x = [&](const Values& v) {
    return dot(dy, reference::rope_apply(v, tables, heads, dim, false));
  };
  expect_close(reference::rope_apply(dy, tables, heads, dim, true), numeric_gradient(of_x, x),
               kGradcheckTolerance, "dx");
}

TEST(Reference, SwiGluGradients) {
  const Values gate = random_values(20, 9, 3);
  const Values up = random_values(20, 10);
  const Values dout = random_values(20, 11);
  const auto got = reference::swiglu_backward(gate, up, dout);
  const auto of_gate = [&](const Values& v) { return dot(dout, reference::swiglu_forward(v, up)); };
  const auto of_up = [&](const Values& v) { return dot(dout, reference::swiglu_forward(gate, v)); };
  expect_close(got.dgate, numeric_gradient(of_gate, gate), kGradcheckTolerance, "dgate");
  expect_close(got.dup, numeric_gradient(of_up, up), kGradcheckTolerance, "dup");
}

TEST(Reference, EmbeddingGradient) {
  const Values ids{2, 0, 2};
  const Values table = random_values(4 * 3, 12);
  const Values dout = random_values(3 * 3, 13);
  Values got = reference::zeros(4 * 3);
  reference::embedding_backward(ids, dout, got, 3);
  const auto of_table = [&](const Values& v) {
    return dot(dout, reference::embedding_forward(ids, v, 3));
  };
  expect_close(got, numeric_gradient(of_table, table), kGradcheckTolerance, "dtable");
}

TEST(Reference, CrossEntropyGradient) {
  const std::size_t v = 6;
  const Values labels{5, -100, 0};
  const Values logits = random_values(3 * 6, 14, 2);
  const auto of_logits = [&](const Values& x) {
    return reference::cross_entropy(x, labels, v).loss_sum;
  };
  const auto got = reference::cross_entropy(logits, labels, v);
  expect_close(got.dlogits, numeric_gradient(of_logits, logits), kGradcheckTolerance, "dlogits");
  EXPECT_EQ(got.valid_count, 2);
  EXPECT_TRUE(std::isnan(got.nll[1]));
}

}  // namespace
}  // namespace farspan::testing
