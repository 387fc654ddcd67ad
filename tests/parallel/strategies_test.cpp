// What all strategies have in common: any mask, layout and bias, bytes, repeatability, and errors
// that do not grow with the number of ranks.
#include <gtest/gtest.h>

#include <random>

#include "parallel/sharded_attention.h"

namespace farspan {
namespace {

using namespace farspan::testing;

TEST(Strategies, AreMadeByName) {
  for (const char* name : {"ring", "allgather", "ulysses", "hybrid"})
    EXPECT_NE(make_attention(name), nullptr);
  EXPECT_FALSE(make_attention("ring")->spreads());
  EXPECT_FALSE(make_attention("allgather")->spreads());
  EXPECT_TRUE(make_attention("ulysses")->spreads());
  EXPECT_TRUE(make_attention("hybrid")->spreads());
  EXPECT_THROW(make_attention("star"), Error);
  EXPECT_THROW(make_attention("ring", /*invariant=*/true), Error);
}

template <typename T>
const T& any_of(std::mt19937_64& rng, const std::vector<T>& values) {
  return values[rng() % values.size()];
}

TaskOptions random_options(std::mt19937_64& rng) {
  TaskOptions o;
  o.seed = rng();
  o.length = any_of(rng, std::vector<std::int64_t>{1, 2, 5, 13, 31, 64, 97, 120});
  o.longest = any_of(rng, std::vector<std::int64_t>{1, 4, 20, 50, 200});
  o.heads = any_of(
      rng, std::vector<TaskHeads>{
               {4, 4, 8}, {4, 2, 16}, {4, 1, 8}, {12, 4, 8}, {8, 2, 8}, {6, 3, 8}, {1, 1, 16}});
  o.pattern = any_of(rng, sample_patterns());
  if (o.pattern.sparse == SparseKind::kShifted && o.heads.kv % 2 != 0) o.heads = {8, 4, 8};
  o.alibi = rng() % 3 == 0;
  o.xpos = o.pattern.causal && rng() % 4 == 0;
  o.jumps = rng() % 2 == 0;
  return o;
}

Sharded random_sharding(std::mt19937_64& rng, const TaskOptions& o) {
  Sharded s;
  s.strategy = any_of(rng, std::vector<std::string>{"ring", "allgather", "ulysses", "hybrid"});
  std::vector<int> divisors;
  for (int u = 1; u <= 8 && u <= o.heads.q; ++u)
    if (o.heads.q % u == 0) divisors.push_back(u);
  if (s.strategy == "ulysses" || s.strategy == "hybrid") s.ulysses = any_of(rng, divisors);
  if (s.strategy != "ulysses")
    s.ring =
        any_of(rng, s.ulysses > 2 ? std::vector<int>{1, 2, 3} : std::vector<int>{1, 2, 3, 4, 5, 8});
  s.layout = any_of(rng, std::vector<LayoutKind>{LayoutKind::kZigzag, LayoutKind::kContiguous,
                                                 LayoutKind::kStriped});
  if (rng() % 3 == 0) s.random_layout = rng() | 1;
  return s;
}

TEST(Strategies, EqualTheDefinitionForAnyMaskLayoutAndBias) {
  for (std::uint64_t seed = 1; seed <= 120; ++seed) {
    std::mt19937_64 rng(seed);
    const TaskOptions options = random_options(rng);
    const AttentionTask task = make_task(options);
    const TaskResult expected = definition(task);
    for (int i = 0; i < 3; ++i) {
      const Sharded how = random_sharding(rng, options);
      SCOPED_TRACE(fmt::format("seed {} case {}: length {} longest {}, {}/{} heads, {}{}{}{}, {}",
                               seed, i, options.length, options.longest, options.heads.q,
                               options.heads.kv, options.pattern.description(),
                               options.alibi ? ", alibi" : "", options.xpos ? ", xpos" : "",
                               options.jumps ? ", jumps" : "", how.description()));
      expect_equal_results(run_sharded(task, how), expected);
      if (::testing::Test::HasFailure()) return;
    }
  }
}

const std::vector<Sharded>& one_of_each() {
  static const std::vector<Sharded> kAll{{.strategy = "ring", .ring = 4},
                                         {.strategy = "allgather", .ring = 4},
                                         {.strategy = "ulysses", .ulysses = 4},
                                         {.strategy = "hybrid", .ring = 3, .ulysses = 2},
                                         {.strategy = "hybrid", .ring = 2, .ulysses = 4}};
  return kAll;
}

TEST(Strategies, ARerunIsBitwiseEqual) {
  for (const DType dtype : {DType::kF32, DType::kBF16})
    for (Sharded how : one_of_each()) {
      how.dtype = dtype;
      SCOPED_TRACE(how.description());
      const AttentionTask task = make_task({.seed = 11, .length = 200, .longest = 90});
      const TaskResult a = run_sharded(task, how), b = run_sharded(task, how);
      EXPECT_EQ(a.out, b.out);
      EXPECT_EQ(a.lse, b.lse);
      EXPECT_EQ(a.dq, b.dq);
      EXPECT_EQ(a.dk, b.dk);
      EXPECT_EQ(a.dv, b.dv);
    }
}

// One branch of dilation 3 and a single KV head: two tokens of three see nothing, and dealt out one
// by one over three ranks, two ranks have nothing but such rows.
TEST(Strategies, RanksThatSeeNothingGiveZeros) {
  const AttentionTask task =
      make_task({.seed = 5,
                 .length = 36,
                 .heads = {4, 1, 8},
                 .pattern = {.sparse = SparseKind::kDilated, .branches = {{12, 3}}}});
  const TaskResult expected = definition(task);
  for (const Sharded& how : std::vector<Sharded>{
           {.strategy = "ring", .ring = 3, .layout = LayoutKind::kStriped},
           {.strategy = "allgather", .ring = 3, .layout = LayoutKind::kStriped},
           {.strategy = "ulysses", .ulysses = 4},
           {.strategy = "hybrid", .ring = 3, .ulysses = 2, .layout = LayoutKind::kStriped}})
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      Sharded cast = how;
      cast.dtype = dtype;
      SCOPED_TRACE(cast.description());
      const TaskResult r = run_sharded(task, cast);
      if (dtype == DType::kF32) expect_equal_results(r, expected);
      for (std::size_t i = 0; i < 36; ++i) {
        if (i % 3 == 0) continue;
        for (std::size_t c = 0; c < 4 * 8; ++c) {
          EXPECT_EQ(r.out[i * 4 * 8 + c], 0);
          EXPECT_EQ(r.dq[i * 4 * 8 + c], 0);
        }
        for (std::size_t c = 0; c < 8; ++c) {
          EXPECT_EQ(r.dk[i * 8 + c], 0);
          EXPECT_EQ(r.dv[i * 8 + c], 0);
        }
        for (std::size_t h = 0; h < 4; ++h)
          EXPECT_EQ(r.lse[i * 4 + h], -std::numeric_limits<float>::infinity());
      }
    }
}

// ---- bytes ----------------------------------------------------------------------------------

// Per rank and layer, where every rank needs every row: attention of both directions over one
// document. c tokens of a rank, bytes of bf16; gradients of KV rows in f32, of the owner's own part
// none.
TEST(Strategies, BytesOfFullPlansAreTheFormulas) {
  const std::int64_t hq = 8, hkv = 4, d = 16, c = 12;
  const HeadShape heads{.num_heads = hq, .num_kv_heads = hkv, .head_dim = d};
  const AttentionPattern both{.causal = false};
  for (const int ring : {1, 2, 3, 8})
    for (const int ulysses : {1, 2, 4}) {
      const std::int64_t length = c * ring * ulysses;
      const std::vector<std::int32_t> segments(static_cast<std::size_t>(length), 0);
      const auto layout = SequenceLayout::make(LayoutKind::kZigzag, 1, length, ring);
      for (int rank = 0; rank < ring; ++rank) {
        SCOPED_TRACE(fmt::format("{} x {} ranks, place {}", ring, ulysses, rank));
        const AttentionPlan plan = plan_attention(
            {.segments = segments, .layout = layout, .pattern = both, .gather = true}, rank);
        const std::int64_t r = ring - 1, kv = 4 * c * hkv * d;
        if (ulysses == 1) {
          const ContextPlace place{.ring_rank = rank, .ring_size = ring};
          for (const char* strategy : {"ring", "allgather"}) {
            const AttentionBytes bytes = attention_bytes(strategy, plan, place, heads, false);
            EXPECT_EQ(bytes.forward, r * kv) << strategy;
            EXPECT_EQ(bytes.backward, 3 * r * kv) << strategy;
          }
        }
        for (int u = 0; u < ulysses; ++u) {
          const ContextPlace place{rank, ring, u, ulysses};
          const AttentionBytes bytes = attention_bytes("hybrid", plan, place, heads, false);
          const std::int64_t others = ulysses - 1, all = 4 * c * d * (hq + hkv);
          EXPECT_EQ(bytes.spread * ulysses, others * 2 * c * d * (hq + 2 * hkv));
          EXPECT_EQ((bytes.forward - r * kv) * ulysses, others * all);
          EXPECT_EQ((bytes.backward - 3 * r * kv) * ulysses, others * (all + 4 * c * hq));
        }
      }
    }
}

// The same, counted by the communicators (run_sharded compares on every rank).
TEST(Strategies, CountersAgreeForFullPlans) {
  const AttentionTask task = make_task({.seed = 3, .length = 97, .pattern = {.causal = false}});
  const TaskResult expected = definition(task);
  for (const Sharded& how : one_of_each()) {
    SCOPED_TRACE(how.description());
    expect_equal_results(run_sharded(task, how), expected);
  }
}

// ---- bf16 -----------------------------------------------------------------------------------

// Partials stay f32 and are rounded once: the error must not grow with the number of ranks.
TEST(Strategies, Bf16ErrorDoesNotGrowWithRanks) {
  const AttentionTask task = make_task({.seed = 7, .length = 512, .heads = {16, 4, 16}});
  const TaskResult expected = definition(task);
  const TaskResult one = run_sharded(task, {.ring = 1, .dtype = DType::kBF16});
  const auto expect_no_worse = [&](Sharded how) {
    how.dtype = DType::kBF16;
    SCOPED_TRACE(how.description());
    const TaskResult many = run_sharded(task, how);
    const auto compare = [&](const char* name, std::vector<float> TaskResult::*part) {
      EXPECT_LE(relative_error(many.*part, expected.*part),
                1.1 * relative_error(one.*part, expected.*part))
          << name;
    };
    compare("O", &TaskResult::out);
    compare("dQ", &TaskResult::dq);
    compare("dK", &TaskResult::dk);
    compare("dV", &TaskResult::dv);
  };
  for (const int ranks : {2, 4, 8, 16, 32, 64}) {
    expect_no_worse({.strategy = "ring", .ring = ranks});
    expect_no_worse({.strategy = "allgather", .ring = ranks});
    if (ranks <= 16) expect_no_worse({.strategy = "ulysses", .ulysses = ranks});
    for (const int ulysses : {2, 4, 16})
      if (ulysses < ranks)
        expect_no_worse({.strategy = "hybrid", .ring = ranks / ulysses, .ulysses = ulysses});
  }
}

}  // namespace
}  // namespace farspan
