// Every variant that this machine runs, f32 and bf16, against the reference in double.
#include <gmock/gmock.h>

#include "kernels/attention/variants.h"
#include "support/sanitizers.h"

namespace farspan::testing {
namespace {

TEST_P(AttentionTest, Masks) {
  check({"causal", 200, 200, 4, 2, 64, {whole(200, 200, MaskKind::kCausal)}});
  check({"full", 67, 130, 3, 1, 40, {whole(67, 130, MaskKind::kFull)}});
  check({"window", 300, 300, 2, 2, 32, {whole(300, 300, MaskKind::kBand, 0, 50)}});
  check({"window of one", 40, 40, 1, 1, 16, {whole(40, 40, MaskKind::kBand, 0, 1)}});
  check({"band far away", 90, 300, 1, 1, 16, {whole(90, 300, MaskKind::kBand, 250, 31)}});
  check({"inverse", 150, 170, 2, 1, 32, {whole(150, 170, MaskKind::kInverseCausal, 30, 40)}});
  check({"causal, later keys", 100, 100, 1, 1, 24, {whole(100, 100, MaskKind::kCausal, -37)}});
  check({"nothing seen", 50, 60, 2, 1, 16, {whole(50, 60, MaskKind::kCausal, -50)}});
  check({"no slices", 50, 60, 2, 1, 16, {}});
  check({"empty slices",
         5,
         5,
         1,
         1,
         8,
         {whole(0, 5, MaskKind::kFull), whole(5, 0, MaskKind::kFull)}});
}

TEST_P(AttentionTest, TilesOfEveryKind) {
  check({"causal over many tiles", 1100, 1100, 2, 1, 32, {whole(1100, 1100, MaskKind::kCausal)}});
  check({"window over many tiles", 900, 900, 1, 1, 64, {whole(900, 900, MaskKind::kBand, 0, 333)}});
}

// Borders of masks at every offset against strips, vectors and panels of the kernels.
TEST_P(AttentionTest, BordersOfEveryAlignment) {
  for (std::int64_t diagonal = -4; diagonal <= 4; ++diagonal) {
    check({fmt::format("causal {}", diagonal),
           137,
           139,
           1,
           1,
           8,
           {whole(137, 139, MaskKind::kCausal, diagonal)}});
    check({fmt::format("band {}", diagonal),
           137,
           139,
           1,
           1,
           8,
           {whole(137, 139, MaskKind::kBand, diagonal, 68)}});
  }
}

TEST_P(AttentionTest, HeadDims) {
  for (const std::int64_t head_dim : {1, 7, 8, 24, 50, 72, 80, 96, 128, 160, 255, 256})
    check({fmt::format("head dim {}", head_dim),
           70,
           75,
           2,
           1,
           head_dim,
           {whole(70, 75, MaskKind::kCausal, 5)}});
}

TEST_P(AttentionTest, HeadGroups) {
  check({"multi-query", 130, 130, 8, 1, 32, {whole(130, 130, MaskKind::kCausal)}});
  check({"five to one", 130, 130, 5, 1, 32, {whole(130, 130, MaskKind::kCausal)}});
  check({"three to one, twice", 130, 130, 6, 2, 32, {whole(130, 130, MaskKind::kCausal)}});
}

TEST_P(AttentionTest, Documents) {
  check({"documents up to 40", 500, 500, 4, 2, 32, documents(500, 40, 1), {}, 1.0, 1});
  check({"documents up to 400", 1000, 1000, 2, 1, 64, documents(1000, 400, 2), {}, 1.0, 2});
}

TEST_P(AttentionTest, SeveralSlicesPerRow) {
  check({"several slices",
         220,
         200,
         4,
         2,
         48,
         {{.q_begin = 0, .q_len = 150, .k_begin = 0, .k_len = 64},
          {.q_begin = 50,
           .q_len = 150,
           .k_begin = 64,
           .k_len = 136,
           .kind = MaskKind::kCausal,
           .diagonal = 10},
          {.q_begin = 100,
           .q_len = 20,
           .k_begin = 10,
           .k_len = 33,
           .kind = MaskKind::kBand,
           .diagonal = 5,
           .window = 9}}});
}

TEST_P(AttentionTest, StateIsCarriedOverHops) {
  check(
      {"three hops", 200, 230, 4, 2, 64, {whole(200, 230, MaskKind::kCausal, 20)}, {100, 100, 30}});
  check({"hops that some rows miss",
         120,
         300,
         2,
         1,
         32,
         {whole(120, 300, MaskKind::kBand, 180, 90)},
         {50, 50, 100, 0, 100}});
  check(
      {"documents over hops", 400, 400, 2, 2, 32, documents(400, 90, 5), {128, 128, 144}, 1.0, 5});
}

TEST_P(AttentionTest, RandomSlices) {
  for (std::uint64_t seed = 0; seed < 12; ++seed) {
    const CounterRng rng(seed, stream_id("slices"));
    std::uint64_t n = 0;
    const auto draw = [&](std::int64_t low, std::int64_t high) {
      return low +
             static_cast<std::int64_t>(rng.below(n++, static_cast<std::uint64_t>(high - low + 1)));
    };
    TestCase c{"random", draw(1, 180), draw(1, 180), 1, draw(1, 2), draw(1, 40), {}, {}, 1.0, seed};
    c.num_q_heads = c.num_kv_heads * draw(1, 3);
    for (std::int64_t i = draw(1, 6); i > 0; --i) {
      AttentionSlice s{.q_begin = draw(0, c.num_q), .k_begin = draw(0, c.num_k)};
      s.q_len = draw(0, c.num_q - s.q_begin);
      s.k_len = draw(0, c.num_k - s.k_begin);
      s.kind = static_cast<MaskKind>(draw(0, 3));
      s.diagonal = draw(-200, 200);
      s.window = draw(0, 150);
      c.slices.push_back(s);
    }
    check(c);
  }
}

// Rows that see nothing: O = 0, L = -inf, gradients 0; never NaN.
TEST_P(AttentionTest, RowsWithoutKeys) {
  const TestCase c{"rows without keys",
                   64,
                   64,
                   2,
                   1,
                   16,
                   {{.q_begin = 20,
                     .q_len = 30,
                     .k_begin = 8,
                     .k_len = 20,
                     .kind = MaskKind::kCausal,
                     .diagonal = -3}}};
  const AttentionProblem p = make_problem(c, GetParam().dtype);
  AttentionUnderTest e = engine(1);
  const EngineResult r = run_engine(e, c, p, GetParam().dtype);
  const auto out = r.out.doubles(), dq = r.dq.doubles(), dk = r.dk.doubles(), lse = r.lse.doubles();
  for (std::size_t t = 0; t < 64; ++t) {
    const bool sees = t >= 23 && t < 50;
    const bool seen = t >= 8 && t < 28;
    for (std::size_t x = 0; x < 32; ++x) {
      ASSERT_EQ(out[t * 32 + x] != 0, sees) << "row " << t << ": " << out[t * 32 + x];
      ASSERT_TRUE(sees || dq[t * 32 + x] == 0) << "row " << t << ": " << dq[t * 32 + x];
    }
    for (std::size_t x = 0; x < 16 && !seen; ++x) ASSERT_EQ(dk[t * 16 + x], 0) << "key " << t;
    ASSERT_EQ(lse[t] == -INFINITY, !sees) << "row " << t << ": " << lse[t];
  }
}

// The contract of backward by itself: a row whose lse is -inf adds nothing, whatever the slices
// say.
TEST_P(AttentionTest, BackwardGivesRowsWithoutLseNoProbability) {
  const DType dtype = GetParam().dtype;
  const Shape shape{20, 1, 16}, stats{1, 20};
  Values x(dtype, shape), lse(DType::kF32, stats), delta(DType::kF32, stats);
  Values dq(DType::kF32, shape), dk(DType::kF32, shape), dv(DType::kF32, shape);
  x.fill(0.5f);
  lse.fill(-INFINITY);
  const AttentionSlice slice = whole(20, 20, MaskKind::kCausal);
  const Tensor t = x.tensor();
  AttentionUnderTest e = engine(1);
  e.backward({.q = t,
              .k = t,
              .v = t,
              .dout = t,
              .lse = lse.tensor(),
              .delta = delta.tensor(),
              .dq = dq.tensor(),
              .dk = dk.tensor(),
              .dv = dv.tensor(),
              .slices = {&slice, 1}});
  for (const Values* gradient : {&dq, &dk, &dv})
    EXPECT_THAT(gradient->doubles(), ::testing::Each(0.0));
}

TEST_P(AttentionTest, HugeScoresDoNotOverflow) {
  // Scores up to about 1e4: nearly all rows put all weight on one key.
  TestCase c{"huge scores", 150, 150, 2, 1, 64, {whole(150, 150, MaskKind::kCausal)},
             {60, 90},      34.0};
  const AttentionProblem p = make_problem(c, GetParam().dtype);
  AttentionUnderTest e = engine(kTestThreads);
  const EngineResult r = run_engine(e, c, p, GetParam().dtype);
  const AttentionResult reference = reference_attention(p);
  expect_lse(r.lse, reference.lse, 1e-5, c);
  // A score of 1e4 has an absolute error of 1e-3 in f32, so has the logarithm of a probability.
  expect_l2(r.out, reference.out, 5e-3, "out", c);
  for (const Values* x : {&r.dq, &r.dk, &r.dv})
    EXPECT_THAT(x->doubles(),
                ::testing::Each(::testing::Truly([](double y) { return std::isfinite(y); })));
}

TEST_P(AttentionTest, NaNStaysVisible) {
  TestCase c{"NaN", 40, 40, 1, 1, 16, {whole(40, 40, MaskKind::kCausal)}};
  AttentionProblem p = make_problem(c, GetParam().dtype);
  p.q[10 * 16 + 3] = std::numeric_limits<double>::quiet_NaN();
  AttentionUnderTest e = engine(1);
  const EngineResult r = run_engine(e, c, p, GetParam().dtype);
  EXPECT_TRUE(std::isnan(r.out.doubles()[10 * 16]));
  EXPECT_FALSE(std::isnan(r.out.doubles()[9 * 16]));
  EXPECT_TRUE(std::isnan(r.dk.doubles()[0]));
}

// What one call leaves in the workspace does not reach the next.
TEST_P(AttentionTest, NaNOfOneCallDoesNotReachTheNext) {
  TestCase c{"NaN", 600, 600, 2, 1, 40, {whole(600, 600, MaskKind::kFull)}};
  AttentionProblem p = make_problem(c, GetParam().dtype);
  for (auto* x : {&p.q, &p.k, &p.v, &p.dout})
    std::fill(x->begin(), x->end(), std::numeric_limits<double>::quiet_NaN());
  AttentionUnderTest e = engine(1);
  run_engine(e, c, p, GetParam().dtype);
  c = {"after NaN", 77, 81, 1, 1, 40, {whole(77, 81, MaskKind::kCausal, 3)}};
  p = make_problem(c, GetParam().dtype);
  expect_matches(run_engine(e, c, p, GetParam().dtype), reference_attention(p), GetParam().dtype,
                 c);
}

// Bit for bit, whoever computes what.
TEST_P(AttentionTest, ThreadsAndRepetitionChangeNothing) {
  if (kThreadSanitizer) GTEST_SKIP() << "OpenMP's runtime is not instrumented";
  if (!GetParam().repeatable) GTEST_SKIP() << "adds in any order";
  for (const TestCase& c :
       {TestCase{"causal", 700, 700, 6, 2, 32, {whole(700, 700, MaskKind::kCausal)}, {400, 300}},
        TestCase{"documents", 600, 600, 2, 1, 40, documents(600, 70, 9), {}, 1.0, 9}}) {
    const AttentionProblem p = make_problem(c, GetParam().dtype);
    AttentionUnderTest one = engine(1);
    const EngineResult expected = run_engine(one, c, p, GetParam().dtype);
    for (const int num_threads : thread_counts({1, 3, 8})) {
      AttentionUnderTest many = engine(num_threads);
      EXPECT_TRUE(run_engine(many, c, p, GetParam().dtype) == expected)
          << c.name << ", " << num_threads << " threads";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, AttentionTest, ::testing::ValuesIn(all_variants()),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace farspan::testing
