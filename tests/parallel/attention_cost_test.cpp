#include "parallel/attention_cost.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>

#include "parallel/attention_plan.h"

namespace farspan {
namespace {

constexpr HeadShape kSmall{
    .num_heads = 4, .num_kv_heads = 2, .head_dim = 8, .compute = DType::kBF16};
constexpr std::int64_t kRow = 2 * 2 * 8 * 2;          // bytes of a row of kSmall in bf16
constexpr std::int64_t kRowGradient = 2 * 2 * 8 * 4;  // and of its gradient

AttentionCase one_document(std::int64_t tokens, int ranks) {
  AttentionCase c;
  c.documents = {tokens};
  c.ranks = ranks;
  c.heads = kSmall;
  return c;
}

// Lengths of a lognormal distribution, cut to `tokens` in all.
std::vector<std::int64_t> lognormal(std::int64_t tokens, double median, double sigma,
                                    std::uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto uniform = [&] { return (static_cast<double>(random() >> 11) + 0.5) * 0x1p-53; };
  std::vector<std::int64_t> lengths;
  for (std::int64_t left = tokens; left > 0; left -= lengths.back()) {
    const double normal = std::sqrt(-2 * std::log(uniform())) * std::cos(6.283185307 * uniform());
    const auto length = static_cast<std::int64_t>(median * std::exp(sigma * normal));
    lengths.push_back(std::clamp<std::int64_t>(length, 1, left));
  }
  return lengths;
}

double sum(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}

TEST(AttentionCost, ZigzagOfTwoRanksByHand) {
  // Rank 0 holds tokens 0 1 6 7, rank 1 tokens 2 3 4 5.
  const AttentionSummary s = summarize(one_document(8, 2));
  EXPECT_EQ(s.tokens, (std::vector<std::int64_t>{4, 4}));
  EXPECT_EQ(s.area, (std::vector<double>{18, 18}));
  EXPECT_EQ(s.area_by_hop, (std::vector<std::vector<double>>{{10, 8}, {10, 8}}));
  // Rank 1 needs tokens 0 and 1, rank 0 needs 2 to 5.
  EXPECT_EQ(s.bytes_forward, 6 * kRow);
  EXPECT_EQ(s.bytes_unique, 6 * kRow);
  EXPECT_EQ(s.bytes_ring_total, 8 * kRow);
  EXPECT_EQ(s.bytes_backward, 6 * kRow + 6 * kRowGradient);
  ASSERT_EQ(s.hops.size(), 2u);
  EXPECT_EQ(s.hops[0].bytes, 6 * kRow);
  EXPECT_EQ(s.hops[1].bytes, 0);
  EXPECT_EQ(s.hops[1].area_max, 8);
  EXPECT_EQ(s.hops[1].area_mean, 8);
  EXPECT_EQ(s.hops[1].slices, 2);  // rows 6, 7 on keys 2 to 5; rows 2 to 5 on keys 0, 1
  EXPECT_EQ(s.tokens_max_over_mean, 1);
  EXPECT_EQ(s.area_max_over_mean, 1);
}

TEST(AttentionCost, AWindowMovesItsHalo) {
  AttentionCase c = one_document(64, 4);
  c.layout = LayoutKind::kContiguous;
  c.patterns = {{.window = 5}};
  const AttentionSummary s = summarize(c);
  EXPECT_EQ(s.bytes_forward, 3 * 4 * kRow);  // window - 1 rows over each of three borders
  EXPECT_EQ(s.bytes_unique, 3 * 4 * kRow);
  EXPECT_EQ(s.bytes_ring_total, 3 * 64 * kRow);
  EXPECT_EQ(s.hops.size(), 2u);
}

TEST(AttentionCost, ARowThatPassesIsCountedAtEveryHop) {
  AttentionCase c = one_document(4, 4);  // one token each: row t goes 3 - t hops
  c.layout = LayoutKind::kContiguous;
  const AttentionSummary s = summarize(c);
  EXPECT_EQ(s.bytes_forward, (3 + 2 + 1) * kRow);
  EXPECT_EQ(s.bytes_unique, (3 + 2 + 1) * kRow);
  c.layout = LayoutKind::kZigzag;  // rank 0: 0; 1: 1; 2: 2; 3: 3 of 8 half empty chunks
  EXPECT_LE(summarize(c).bytes_forward, 3 * 4 * kRow);
}

TEST(AttentionCost, UniqueBytesAreLessThanForwardedOnes) {
  // Two documents in zigzag: what the second one's tail needs travels the long way round.
  AttentionCase c = one_document(0, 4);
  c.documents = {16, 16};
  const AttentionSummary s = summarize(c);
  double needed = 0;  // counted from the plan's own gathered rows
  const SequenceLayout layout = attention_layout(c);
  const std::vector<std::int32_t> segments = [&] {
    std::vector<std::int32_t> out(16, 0);
    out.insert(out.end(), 16, 1);
    return out;
  }();
  for (int r = 0; r < 4; ++r) {
    std::vector<bool> seen(32);
    for (const IndexRange& q : layout.ranges(r))
      for (std::int64_t i = q.begin; i < q.end; i += q.stride)
        for (std::int64_t j = i / 16 * 16; j <= i; ++j) seen[static_cast<std::size_t>(j)] = true;
    for (const IndexRange& own : layout.ranges(r))
      for (std::int64_t i = own.begin; i < own.end; i += own.stride)
        seen[static_cast<std::size_t>(i)] = false;
    needed += static_cast<double>(std::count(seen.begin(), seen.end(), true));
  }
  EXPECT_EQ(s.bytes_unique, needed * kRow);
  EXPECT_GT(s.bytes_forward, s.bytes_unique);
  EXPECT_LT(s.bytes_forward, s.bytes_ring_total);
}

TEST(AttentionCost, LognormalDocumentsInZigzagAsSpecified) {
  // attention.md, section 1: area 3.10 of the mean, 22% of the ring's bytes; means of eight draws.
  constexpr int kDraws = 8;
  double area = 0, bytes = 0;
  for (int seed = 1; seed <= kDraws; ++seed) {
    AttentionCase c = one_document(0, 32);
    c.documents = lognormal(1 << 20, 3000, 1.2, static_cast<std::uint64_t>(seed));
    const AttentionSummary s = summarize(c, {.references = false});
    area += s.area_max_over_mean / kDraws;
    bytes += s.bytes_forward / s.bytes_ring_total / kDraws;
  }
  EXPECT_NEAR(area, 3.1, 0.9);
  EXPECT_NEAR(bytes, 0.22, 0.03);
}

TEST(AttentionCost, StrategiesShareTheWholeArea) {
  for (const auto& [attention, ulysses] : std::vector<std::pair<const char*, int>>{
           {"ring", 1}, {"allgather", 1}, {"ulysses", 4}, {"hybrid", 2}}) {
    AttentionCase c = one_document(0, 4);
    c.documents = {50, 13, 37};
    c.attention = attention;
    c.ulysses = ulysses;
    const AttentionSummary s = summarize(c);
    EXPECT_NEAR(sum(s.area), 1275 + 91 + 703, 1e-6) << attention;
    EXPECT_EQ(std::accumulate(s.tokens.begin(), s.tokens.end(), std::int64_t{0}), 100) << attention;
    EXPECT_EQ(s.tokens.size(), 4u);
    EXPECT_EQ(s.ring, 4 / ulysses);
    EXPECT_EQ(s.bytes_ring_total, 300 * kRow);
    EXPECT_GT(s.bytes_unique, 0) << attention;
  }
}

TEST(AttentionCost, UlyssesBytesAreTheFormula) {
  AttentionCase c = one_document(64, 4);
  c.heads = {.num_heads = 8, .num_kv_heads = 4, .head_dim = 16, .compute = DType::kBF16};
  c.attention = "ulysses";
  c.ulysses = 4;
  const AttentionSummary s = summarize(c);
  // 4 c d (Hq + Hkv) (U - 1) / U bytes a rank, attention.md section 4.
  EXPECT_EQ(s.bytes_forward, 4 * (4.0 * 16 * 16 * (8 + 4) * 3 / 4));
  ASSERT_EQ(s.hops.size(), 1u);
  EXPECT_EQ(s.hops[0].bytes, 0);
  EXPECT_EQ(s.area_max_over_mean, 1);
}

TEST(AttentionCost, AllGatherSendsWhatIsNeededOnce) {
  AttentionCase c = one_document(64, 4);
  const AttentionSummary ring = summarize(c);
  c.attention = "allgather";
  const AttentionSummary s = summarize(c);
  EXPECT_EQ(s.bytes_forward, ring.bytes_unique);
  EXPECT_EQ(s.bytes_unique, ring.bytes_unique);
  double by_distance = 0;
  for (const HopCost& hop : s.hops) by_distance += hop.bytes;
  EXPECT_EQ(by_distance, s.bytes_forward);
}

TEST(AttentionCost, InvariantBlocks) {
  AttentionCase c = one_document(1000, 4);
  c.attention = "allgather";
  c.block = 128;
  for (const LayoutKind layout : {LayoutKind::kZigzag, LayoutKind::kContiguous,
                                  LayoutKind::kStriped, LayoutKind::kBalanced}) {
    c.layout = layout;
    const AttentionSummary s = summarize(c);
    EXPECT_TRUE(s.invariant);
    EXPECT_NEAR(sum(s.area), 1000 * 1001 / 2.0, 1e-6) << layout_name(layout);
    // Whole blocks, but for the last one of 104 tokens.
    for (const std::int64_t tokens : s.tokens)
      EXPECT_TRUE(tokens % 128 == 0 || tokens % 128 == 104) << tokens;
    EXPECT_EQ(s.bytes_forward, s.bytes_unique) << layout_name(layout);
    EXPECT_LE(s.bytes_unique, s.bytes_ring_total);
    const PredictedTime t = predict(s, {.flops_per_second = 1e9, .bytes_per_second = 1e9});
    EXPECT_GT(t.exposed_forward, 0);
  }
  c.attention = "ring";
  EXPECT_FALSE(is_legal(c));
}

TEST(AttentionCost, PatternsCountByTheirLayers) {
  AttentionCase c = one_document(100, 2);
  c.patterns = {{}, {.window = 10}};
  c.weights = {1, 3};
  const double full = 100 * 101 / 2.0, windowed = 10 * 11 / 2.0 + 90 * 10.0;
  const AttentionSummary s = summarize(c);
  EXPECT_NEAR(sum(s.area), 0.25 * full + 0.75 * windowed, 1e-9);
  ASSERT_EQ(s.patterns.size(), 2u);
  EXPECT_EQ(s.patterns[1].weight, 0.75);
  AttentionCase one = c;
  one.weights = {};
  one.patterns = {c.patterns[0]};
  const AttentionSummary first = summarize(one);
  one.patterns = {c.patterns[1]};
  const AttentionSummary second = summarize(one);
  ASSERT_LT(second.bytes_unique, first.bytes_unique);
  EXPECT_NEAR(s.bytes_unique, 0.25 * first.bytes_unique + 0.75 * second.bytes_unique, 1e-6);
  EXPECT_NEAR(s.bytes_forward, 0.25 * first.bytes_forward + 0.75 * second.bytes_forward, 1e-6);
  EXPECT_NEAR(s.bytes_backward, 0.25 * first.bytes_backward + 0.75 * second.bytes_backward, 1e-6);
}

TEST(AttentionCost, FewerTokensThanRanksAndOneRank) {
  const AttentionSummary few = summarize(one_document(3, 8));
  EXPECT_EQ(sum(few.area), 6);
  const AttentionSummary one = summarize(one_document(7, 1));
  EXPECT_EQ(one.bytes_forward, 0);
  EXPECT_EQ(one.bytes_ring_total, 0);
  EXPECT_EQ(one.area_max_over_mean, 1);
  const PredictedTime t = predict(one, {.flops_per_second = 1e9, .bytes_per_second = 1e9});
  EXPECT_EQ(t.exposed_forward, 0);
  EXPECT_NEAR(t.total, t.ideal, 1e-12);
}

TEST(AttentionCost, PredictionByHand) {
  // 4 FLOPs x 4 heads x 8 dims a pair forward: one pair a second. Areas 10 and 8 (above).
  AttentionSpeeds speeds{.flops_per_second = 128, .bytes_per_second = 16};
  const AttentionSummary s = summarize(one_document(8, 2));
  PredictedTime t = predict(s, speeds);
  // Hop 0: 10 s of work hide 10 of the 16 s in which four rows arrive (rank 0) or leave (rank 1).
  EXPECT_NEAR(t.forward, 16 + 8, 1e-9);
  EXPECT_NEAR(t.exposed_forward, 6, 1e-9);
  // Backward: 25 s and 20 s of work; the gradients of hop 1 go home afterwards, 4 x 128 bytes.
  EXPECT_NEAR(t.backward, 25 + 20 + 32, 1e-9);
  EXPECT_NEAR(t.exposed_backward, 32, 1e-9);
  EXPECT_EQ(t.exposed_forward_by_hop, (std::vector<double>{6, 0}));
  EXPECT_EQ(t.exposed_backward_by_hop, (std::vector<double>{0, 32}));
  EXPECT_NEAR(t.total, t.forward + t.backward, 1e-9);
  EXPECT_NEAR(t.ideal, 18 + 45, 1e-9);
  speeds.backward_flops_per_second = 64;
  speeds.seconds_per_message = 1;
  t = predict(s, speeds);
  EXPECT_NEAR(t.forward, 17 + 8, 1e-9);
  EXPECT_NEAR(t.backward, 50 + 40 + 33, 1e-9);
}

TEST(AttentionCost, UnevenTokensCostTheirDenseWork) {
  AttentionCase c = one_document(10, 4);  // 3, 3, 2, 2 or the like
  c.documents.assign(10, 1);
  c.layout = LayoutKind::kContiguous;
  c.dense_flops_per_token = 1000;
  const AttentionSummary s = summarize(c);
  const auto most = *std::max_element(s.tokens.begin(), s.tokens.end());
  ASSERT_EQ(most, 3);
  const AttentionSpeeds speeds{.flops_per_second = 1000, .bytes_per_second = 1};
  const double attention = 3 * (4 + 10) * 32 / 1000.0;
  EXPECT_NEAR(predicted_seconds(s, speeds), 3 * 3 + attention, 1e-9);
}

TEST(AttentionCost, DocumentLengthsFromSegments) {
  EXPECT_EQ(document_lengths(std::vector<std::int32_t>{4, 4, 7, 9, 9, 9}),
            (std::vector<std::int64_t>{2, 1, 3}));
  EXPECT_TRUE(document_lengths({}).empty());
}

TEST(AttentionCost, Legality) {
  AttentionCase c = one_document(64, 8);  // 4 query heads
  EXPECT_TRUE(is_legal(c));
  c.attention = "hybrid";
  c.ulysses = 4;
  EXPECT_TRUE(is_legal(c));
  c.ulysses = 3;
  EXPECT_FALSE(is_legal(c));
  c.ulysses = 8;
  EXPECT_FALSE(is_legal(c));  // 8 does not divide 4 heads
  c.attention = "ulysses";
  EXPECT_FALSE(is_legal(c));
  c.attention = "rings";
  c.ulysses = 1;
  EXPECT_FALSE(is_legal(c));
  EXPECT_THROW(summarize(c), InternalError);
}

TEST(AttentionCost, LayoutNamesReadBack) {
  for (const char* name : {"contiguous", "zigzag", "striped", "balanced"})
    EXPECT_EQ(layout_name(layout_kind(name)), name);
  EXPECT_THROW(nominal_speeds("tpu", DType::kBF16, 8), Error);
}

config::RunConfig small_config() {
  config::RunConfig config;
  config.set_device("cuda");
  auto& m = *config.mutable_model();
  m.set_hidden_size(32);
  m.set_intermediate_size(64);
  m.set_num_hidden_layers(2);
  m.set_vocab_size(100);
  m.set_num_attention_heads(4);
  m.set_num_key_value_heads(2);
  m.set_head_dim(8);
  config.mutable_parallel()->set_context(4);
  return config;
}

TEST(AttentionCost, CaseOfAConfiguration) {
  config::RunConfig config = small_config();
  config.mutable_parallel()->set_attention("auto");
  config.mutable_parallel()->set_layout("auto");
  const std::vector<std::int32_t> segments{0, 0, 0, 1, 2, 2, 3, 3};
  const ParallelRequest r = parallel_request(config, segments, 2);
  EXPECT_TRUE(r.free_layout && r.free_attention && r.free_ulysses);
  EXPECT_EQ(r.problem.documents, (std::vector<std::int64_t>{3, 1, 2, 2}));
  EXPECT_EQ(r.problem.sequences, 2);
  EXPECT_EQ(r.problem.ranks, 4);
  EXPECT_EQ(r.problem.heads.num_kv_heads, 2);
  // 2 x (queries and output 2 x 32 x 32, keys and values 2 x 32 x 16, MLP 3 x 32 x 64, head / 2).
  EXPECT_EQ(r.problem.dense_flops_per_token, 2.0 * (2048 + 1024 + 6144 + 1600));
  config.mutable_parallel()->set_attention("hybrid");
  config.mutable_parallel()->set_ulysses(2);
  const ParallelRequest fixed = parallel_request(config, segments, 2);
  EXPECT_FALSE(fixed.free_attention || fixed.free_ulysses);
  EXPECT_EQ(fixed.problem.ulysses, 2);
}

ParallelRequest request_of(std::vector<std::int64_t> documents, int ranks) {
  ParallelRequest r;
  r.problem = one_document(0, ranks);
  r.problem.documents = std::move(documents);
  r.problem.heads = {.num_heads = 32, .num_kv_heads = 8, .head_dim = 128, .compute = DType::kBF16};
  r.speeds = nominal_speeds("cuda", DType::kBF16, ranks);
  return r;
}

TEST(ParallelChoice, PackedDocumentsAreBalanced) {
  ParallelRequest r = request_of(lognormal(1 << 20, 3000, 1.2, 3), 32);
  r.free_attention = false;
  const ParallelChoice choice = choose_parallel(r);
  EXPECT_EQ(choice.layout, LayoutKind::kBalanced);
  EXPECT_EQ(choice.attention, "ring");
  EXPECT_EQ(choice.why.rfind("balanced ring: area 1.0", 0), 0u) << choice.why;
  EXPECT_NE(choice.why.find("(zigzag "), std::string::npos) << choice.why;
  EXPECT_EQ(choice.candidates.size(), 4u);
  EXPECT_EQ(choose_parallel(r).why, choice.why);
}

TEST(ParallelChoice, TheSimplestOfEquallyFastOnes) {
  // So much work that no layout in balance waits for anything.
  ParallelRequest r = request_of({1 << 18}, 4);
  r.free_attention = false;
  const ParallelChoice choice = choose_parallel(r);
  EXPECT_EQ(choice.layout, LayoutKind::kZigzag) << choice.why;
  EXPECT_EQ(choice.why.rfind("zigzag ring: area 1.00", 0), 0u) << choice.why;
}

TEST(ParallelChoice, KeepsWhatIsFixedAndLegal) {
  ParallelRequest r = request_of({4096, 1024, 3072}, 6);  // 6 does not divide 32 heads
  const ParallelChoice free = choose_parallel(r);
  bool hybrid = false;
  for (const ParallelCandidate& c : free.candidates) {
    EXPECT_NE(c.attention, "ulysses");
    hybrid = hybrid || (c.attention == "hybrid" && c.ulysses == 2);
  }
  EXPECT_TRUE(hybrid);
  r.free_layout = false;
  r.problem.layout = LayoutKind::kContiguous;
  for (const ParallelCandidate& c : choose_parallel(r).candidates)
    EXPECT_EQ(c.layout, LayoutKind::kContiguous);
  r.free_attention = false;
  r.problem.attention = "ulysses";
  r.problem.ulysses = 6;
  EXPECT_THROW(choose_parallel(r), Error);
}

TEST(ParallelChoice, DealsOutNoTokensWhereThePlanWouldExplode) {
  const ParallelRequest r = request_of(std::vector<std::int64_t>(4096, 64), 128);
  for (const ParallelCandidate& c : choose_parallel(r).candidates)
    if (c.ulysses == 1) {
      EXPECT_NE(c.layout, LayoutKind::kStriped);
    }
}

}  // namespace
}  // namespace farspan
