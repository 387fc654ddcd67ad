// The oracle itself: its gradients are those of its forward pass.
#include "support/reference_attention.h"

#include <gtest/gtest.h>

#include "core/rng.h"
#include "support/compare.h"
#include "support/gradcheck.h"

namespace farspan::testing {
namespace {

std::vector<double> normals(const char* name, std::int64_t n) {
  const CounterRng rng(3, stream_id(name));
  std::vector<double> x(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = rng.normal(i);
  return x;
}

AttentionProblem small_problem() {
  AttentionProblem p{
      .num_q = 7, .num_k = 9, .num_q_heads = 4, .num_kv_heads = 2, .head_dim = 3, .scale = 0.6};
  p.slices = {{.q_begin = 0, .q_len = 3, .k_begin = 1, .k_len = 5, .kind = MaskKind::kFull},
              {.q_begin = 2,
               .q_len = 4,
               .k_begin = 3,
               .k_len = 6,
               .kind = MaskKind::kCausal,
               .diagonal = 2},
              {.q_begin = 1,
               .q_len = 4,
               .k_begin = 0,
               .k_len = 4,
               .kind = MaskKind::kBand,
               .diagonal = 1,
               .window = 2},
              {.q_begin = 4,
               .q_len = 2,
               .k_begin = 5,
               .k_len = 4,
               .kind = MaskKind::kInverseCausal,
               .window = 1}};
  p.q = normals("q", 7 * 4 * 3);
  p.k = normals("k", 9 * 2 * 3);
  p.v = normals("v", 9 * 2 * 3);
  p.dout = normals("dout", 7 * 4 * 3);
  return p;
}

double loss(const AttentionProblem& p) { return dot(p.dout, reference_attention(p).out); }

void expect_gradients(const AttentionProblem& p) {
  const AttentionResult r = reference_attention(p);
  const auto with = [&](std::vector<double> AttentionProblem::*member) {
    return [&p, member](const std::vector<double>& x) {
      AttentionProblem moved = p;
      moved.*member = x;
      return loss(moved);
    };
  };
  expect_close(r.dq, numeric_gradient(with(&AttentionProblem::q), p.q), kGradcheckTolerance, "dq");
  expect_close(r.dk, numeric_gradient(with(&AttentionProblem::k), p.k), kGradcheckTolerance, "dk");
  expect_close(r.dv, numeric_gradient(with(&AttentionProblem::v), p.v), kGradcheckTolerance, "dv");
}

TEST(ReferenceAttention, GradientsAreThoseOfItsForwardPass) { expect_gradients(small_problem()); }

TEST(ReferenceAttention, GradientsWithHeadRangesSlopesAndDecay) {
  AttentionProblem p = small_problem();
  p.head_dim = 4;
  p.q = normals("q", 7 * 4 * 4);
  p.k = normals("k", 9 * 2 * 4);
  p.v = normals("v", 9 * 2 * 4);
  p.dout = normals("dout", 7 * 4 * 4);
  p.slices[0].kv_heads = {.begin = 1};
  p.slices[1].kv_heads = {.begin = 0, .end = 1};
  p.slices[3].position_diagonal = 11;
  p.position_stride = 3;
  p.slopes = {0.1, 0.2, 0.05, 0.0};
  expect_gradients(p);
  p.decay = {-0.02, -0.3};
  expect_gradients(p);
  p.slopes = {};
  expect_gradients(p);
}

// By hand: two keys at distances 5 and 3 from the query, head 1 of two KV heads only.
TEST(ReferenceAttention, BiasIsThatOfTheContract) {
  AttentionProblem p{
      .num_q = 1, .num_k = 2, .num_q_heads = 2, .num_kv_heads = 2, .head_dim = 2, .scale = 0.5};
  p.slices = {{.q_len = 1, .k_len = 2, .position_diagonal = 5, .kv_heads = {.begin = 1}}};
  p.q = {9, 9, 1, 2};
  p.k = {9, 9, 3, 4, 9, 9, 5, 6};
  p.v = {9, 9, 1, 0, 9, 9, 0, 1};
  p.slopes = {7.0, 0.25};
  p.decay = {-0.5};
  p.position_stride = 2;
  const AttentionResult r = reference_attention(p);
  const double first = 0.5 * 11 * std::exp2(-2.5) - 0.25 * 5;
  const double second = 0.5 * 17 * std::exp2(-1.5) - 0.25 * 3;
  EXPECT_NEAR(r.lse[1], std::log(std::exp(first) + std::exp(second)), 1e-14);
  EXPECT_NEAR(r.out[2], std::exp(first - r.lse[1]), 1e-14);
  EXPECT_NEAR(r.out[3], std::exp(second - r.lse[1]), 1e-14);
  EXPECT_EQ(r.out[0], 0);
  EXPECT_EQ(r.lse[0], -std::numeric_limits<double>::infinity());
}

TEST(ReferenceAttention, OneKeyIsCopiedAndNoKeyGivesZero) {
  AttentionProblem p = small_problem();
  p.slices = {{.q_begin = 0,
               .q_len = 7,
               .k_begin = 4,
               .k_len = 1,
               .kind = MaskKind::kInverseCausal,
               .window = 3}};
  const AttentionResult r = reference_attention(p);
  for (std::int64_t t = 0; t < 7; ++t)
    for (std::int64_t h = 0; h < 4; ++h)
      for (std::int64_t d = 0; d < 3; ++d) {
        const double value = p.v[static_cast<std::size_t>((4 * 2 + h / 2) * 3 + d)];
        EXPECT_DOUBLE_EQ(r.out[static_cast<std::size_t>((t * 4 + h) * 3 + d)], t < 3 ? value : 0.0);
      }
  EXPECT_EQ(r.lse[3], -std::numeric_limits<double>::infinity());
}

}  // namespace
}  // namespace farspan::testing
