// Head ranges, ALiBi and xPos, on every variant, against the reference in double.
#include <gmock/gmock.h>

#include "kernels/attention/variants.h"
#include "kernels/visible_pairs.h"

namespace farspan::testing {
namespace {

class AttentionBiasTest : public AttentionTest {};

constexpr std::int64_t kMillion = 1'000'000;

AttentionSlice placed(AttentionSlice s, std::int64_t position_diagonal) {
  s.position_diagonal = position_diagonal;
  return s;
}

TEST_P(AttentionBiasTest, SlicesForSomeHeads) {
  const AttentionSlice causal = whole(150, 150, MaskKind::kCausal);
  const auto for_heads = [](AttentionSlice s, std::int32_t begin, std::int32_t end) {
    s.kv_heads = {.begin = begin, .end = end};
    return s;
  };
  check({"one head sees nothing", 150, 150, 4, 2, 32, {for_heads(causal, 1, 2)}});
  check({"an end beyond the last head", 150, 150, 4, 2, 32, {for_heads(causal, 0, 99)}});
  check({"no head", 150, 150, 4, 2, 32, {for_heads(causal, 1, 1)}});
  check({"a mask for each head",
         150,
         150,
         9,
         3,
         32,
         {for_heads(whole(150, 150, MaskKind::kBand, 0, 20), 0, 1),
          for_heads(causal, 1, 2),
          for_heads(whole(150, 150, MaskKind::kFull), 2, 3),
          {.q_begin = 60, .q_len = 80, .k_len = 11, .kv_heads = {.begin = 0, .end = 2}}},
         {70, 80}});
  // Rows and keys of several backward blocks, so that turns pass over heads without pieces.
  check({"heads over blocks",
         700,
         700,
         2,
         2,
         16,
         {for_heads(whole(700, 700, MaskKind::kBand, 0, 300), 0, 1),
          {.q_begin = 400, .q_len = 300, .k_len = 100, .kv_heads = {.begin = 1, .end = 2}}}});
}

TEST_P(AttentionBiasTest, SlopesOfAlibi) {
  TestCase c{"causal", 300, 300, 8, 4, 40, {whole(300, 300, MaskKind::kCausal)}};
  c.slopes = alibi_slopes(8);
  check(c);
  c.name = "over hops, every fifth position";
  c.hops = {120, 100, 80};
  c.position_stride = 5;
  check(c);
  // Two documents, the second with a gap of 1000 positions in its middle.
  c = {"documents and gaps",
       200,
       200,
       2,
       1,
       24,
       {{.q_len = 90, .k_len = 90, .kind = MaskKind::kCausal},
        {.q_begin = 90, .q_len = 60, .k_begin = 90, .k_len = 60, .kind = MaskKind::kCausal},
        {.q_begin = 150, .q_len = 50, .k_begin = 90, .k_len = 60, .position_diagonal = 1060},
        {.q_begin = 150, .q_len = 50, .k_begin = 150, .k_len = 50, .kind = MaskKind::kCausal}}};
  c.slopes = {0.3, 0.003};
  check(c);
  // Keys ahead of their queries: p below 0 counts as it stands.
  c = {"not causal", 90, 110, 2, 2, 16, {placed(whole(90, 110, MaskKind::kFull), -30)}};
  c.slopes = {0.02, -0.03};
  check(c);
  c.slices = {placed(whole(90, 110, MaskKind::kInverseCausal, -3, 20), -8)};
  check(c);
}

// Rows that see their own neighbourhood and, on another slice, keys a million positions away, of
// which a small slope leaves something.
TEST_P(AttentionBiasTest, SlopesOverAMillionPositions) {
  TestCase c{
      "near and far",
      130,
      260,
      2,
      1,
      32,
      {placed(whole(130, 130, MaskKind::kFull), kMillion), whole(130, 130, MaskKind::kCausal)},
      {130, 130}};
  c.slices[1].k_begin = 130;
  c.slopes = {0.37, 1.7e-6};
  check(c);
  c.name = "near, 64 positions apart";
  c.position_stride = 64;
  check(c);
}

// Rows of a tile that lie past the last key would have a bias beyond what f32 holds.
TEST_P(AttentionBiasTest, KeysPastTheEndAreNone) {
  TestCase c{"steep", 64, 65, 1, 1, 64, {placed(whole(64, 65, MaskKind::kFull), 70)}};
  c.slopes = {2.0};
  check(c);
}

// All that a row sees is far away: scores near -slope * 1e6, of which only the differences count.
TEST_P(AttentionBiasTest, FarKeysAloneAreAsPreciseAsNearOnes) {
  const bool f32 = GetParam().dtype == DType::kF32;
  for (const double slope : {0.0071, 0.37, 0.9}) {
    TestCase c{fmt::format("far, slope {}", slope),
               100,
               120,
               1,
               1,
               32,
               {placed(whole(100, 120, MaskKind::kFull), kMillion + 7)},
               {50, 70}};
    c.slopes = {slope};
    AttentionProblem p = make_problem(c, GetParam().dtype);
    AttentionUnderTest e = engine(1);
    const EngineResult r = run_engine(e, c, p, GetParam().dtype);
    AttentionResult reference = reference_attention(p);
    expect_l2(r.out, reference.out, f32 ? 2e-6 : 3e-3, "out", c);
    expect_lse(r.lse, reference.lse, 1e-7, c);
    // lse holds the size of the scores in f32: what that rounds off multiplies all probabilities of
    // a row alike. Backward is to add nothing to it.
    const std::vector<double> lse = r.lse.doubles();
    for (std::size_t x = 0; x < p.dout.size(); ++x)
      p.dout[x] *= std::exp(reference.lse[x / 32] - lse[x / 32]);
    reference = reference_attention(p);
    expect_l2(r.dv, reference.dv, f32 ? 1e-5 : 3e-3, "dv", c);
    expect_l2(r.dk, reference.dk, f32 ? 1e-5 : 6e-3, "dk", c);
    expect_l2(r.dq, reference.dq, f32 ? 1e-5 : 6e-3, "dq", c);
  }
}

TEST_P(AttentionBiasTest, DecayOfXpos) {
  TestCase c{"causal", 400, 400, 4, 2, 40, {whole(400, 400, MaskKind::kCausal)}};
  c.decay = xpos_decay(40);
  check(c);
  c = {"over hops, every 16th position",     300,           300, 3, 1, 24,
       {whole(300, 300, MaskKind::kCausal)}, {120, 100, 80}};
  c.decay = xpos_decay(24);
  c.position_stride = 16;
  check(c);
  c = {"window and a far block",
       200,
       260,
       2,
       1,
       64,
       {whole(200, 200, MaskKind::kBand, 0, 33),
        {.q_len = 200, .k_begin = 200, .k_len = 60, .position_diagonal = 300}}};
  c.decay = xpos_decay(64, 4.0);
  check(c);
}

// From factors that fit a tile to factors that no two rows can share.
TEST_P(AttentionBiasTest, SteepDecay) {
  for (const double bits : {0.11, 0.9, 3.0, 13.0, 1e3, 1e30}) {
    TestCase c{fmt::format("{} bits a position", bits), 270, 270, 2, 1, 8,
               {whole(270, 270, MaskKind::kCausal)}};
    c.decay = {-bits, 0.0, -0.5 * bits, -0.01};
    check(c);
  }
}

// Products of far keys are 0 and near ones as ever: nothing overflows.
TEST_P(AttentionBiasTest, DecayOverAMillionPositions) {
  for (const double steepness : {1.0, 50.0}) {
    TestCase c{
        fmt::format("near and far, steepness {}", steepness),
        130,
        260,
        2,
        1,
        32,
        {placed(whole(130, 130, MaskKind::kFull), kMillion), whole(130, 130, MaskKind::kCausal)},
        {130, 130}};
    c.slices[1].k_begin = 130;
    c.decay = xpos_decay(32, steepness);
    c.position_stride = 64;
    check(c);
    c.name += ", with slopes";
    c.slopes = {0.3, 1e-6};
    check(c);
  }
}

// Rows that see nothing: O = 0, L = -inf, gradients 0; never NaN.
TEST_P(AttentionBiasTest, RowsWithoutKeys) {
  TestCase c{"rows without keys",
             64,
             64,
             2,
             2,
             16,
             {{.q_begin = 20,
               .q_len = 30,
               .k_begin = 8,
               .k_len = 20,
               .kind = MaskKind::kCausal,
               .diagonal = -3,
               .position_diagonal = kMillion,
               .kv_heads = {.begin = 1, .end = 2}}},
             {40, 24}};
  c.slopes = {0.5, 0.25};
  c.decay = xpos_decay(16);
  const AttentionProblem p = make_problem(c, GetParam().dtype);
  AttentionUnderTest e = engine(1);
  const EngineResult r = run_engine(e, c, p, GetParam().dtype);
  const auto out = r.out.doubles(), dq = r.dq.doubles(), dk = r.dk.doubles(), dv = r.dv.doubles(),
             lse = r.lse.doubles();
  for (std::size_t t = 0; t < 64; ++t)
    for (std::size_t head = 0; head < 2; ++head) {
      const bool sees = head == 1 && t >= 23 && t < 50;
      const bool seen = head == 1 && t >= 8 && t < 28;
      ASSERT_EQ(lse[head * 64 + t] == -INFINITY, !sees) << "row " << t << ": " << lse[t];
      for (std::size_t x = (t * 2 + head) * 16; x < (t * 2 + head + 1) * 16; ++x) {
        ASSERT_EQ(out[x] != 0, sees) << "row " << t << ": " << out[x];
        ASSERT_TRUE(sees ? std::isfinite(dq[x]) : dq[x] == 0) << "row " << t << ": " << dq[x];
        ASSERT_TRUE(seen ? std::isfinite(dk[x]) : dk[x] == 0) << "key " << t << ": " << dk[x];
        ASSERT_TRUE(seen ? std::isfinite(dv[x]) : dv[x] == 0) << "key " << t << ": " << dv[x];
      }
    }
}

TEST_P(AttentionBiasTest, RandomSlices) {
  for (std::uint64_t seed = 0; seed < 12; ++seed) {
    const CounterRng rng(seed, stream_id("slices with bias"));
    std::uint64_t n = 0;
    const auto draw = [&](std::int64_t low, std::int64_t high) {
      return low +
             static_cast<std::int64_t>(rng.below(n++, static_cast<std::uint64_t>(high - low + 1)));
    };
    TestCase c{"random", draw(1, 180), draw(1, 180), 1, draw(1, 3), draw(8, 40), {}, {}, 1.0, seed};
    c.num_q_heads = c.num_kv_heads * draw(1, 5);
    c.position_stride = draw(1, 9);
    for (std::int64_t h = 0; h < c.num_q_heads; ++h)
      c.slopes.push_back(static_cast<double>(draw(0, 100)) * 3e-4);
    for (std::int64_t i = draw(1, 6); i > 0; --i) {
      AttentionSlice s{.q_begin = draw(0, c.num_q), .k_begin = draw(0, c.num_k)};
      s.q_len = draw(0, c.num_q - s.q_begin);
      s.k_len = draw(0, c.num_k - s.k_begin);
      s.kind = static_cast<MaskKind>(draw(0, 3));
      s.diagonal = draw(-200, 200);
      s.window = draw(0, 150);
      s.position_diagonal = draw(-300, 300);
      const auto first = static_cast<std::int32_t>(draw(0, c.num_kv_heads - 1));
      s.kv_heads = {.begin = first,
                    .end = static_cast<std::int32_t>(draw(first, c.num_kv_heads + 1))};
      c.slices.push_back(s);
    }
    check(c);
    // xPos looks back only.
    c.name = "random, with decay";
    c.head_dim += c.head_dim % 2;
    c.decay = xpos_decay(c.head_dim);
    for (AttentionSlice& s : c.slices)
      if (visible_pairs(s) > 0)
        s.position_diagonal += std::max<std::int64_t>(0, -shortest_distance(s, c.position_stride));
    check(c);
  }
}

INSTANTIATE_TEST_SUITE_P(All, AttentionBiasTest, ::testing::ValuesIn(all_variants()),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace farspan::testing
