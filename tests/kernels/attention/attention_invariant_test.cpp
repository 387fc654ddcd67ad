// Bit for bit: threads, head ranges and biases; and, with `invariant`, where the keys lie in the
// call's KV block and which heads it holds.
#include <gtest/gtest.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include "kernels/attention/variants.h"
#include "support/sanitizers.h"

namespace farspan::testing {
namespace {

class AttentionInvariantTest : public AttentionTest {};

// A block of queries and the blocks of keys that it sees, ascending, as invariant mode cuts them.
struct KeyBlock {
  std::int64_t length;
  std::vector<AttentionSlice> slices;  // k_begin counts from the block
};

constexpr std::int64_t kRows = 200, kQueryHeads = 6, kKvHeads = 2, kHeadDim = 40;

std::vector<KeyBlock> key_blocks() {
  const auto rows = [](std::int64_t begin, std::int64_t count, MaskKind kind, std::int64_t diagonal,
                       std::int64_t window, std::int64_t k_begin, std::int64_t k_len) {
    return AttentionSlice{.q_begin = begin,
                          .q_len = count,
                          .k_begin = k_begin,
                          .k_len = k_len,
                          .kind = kind,
                          .diagonal = diagonal,
                          .window = window,
                          .position_diagonal = diagonal};
  };
  std::vector<KeyBlock> blocks = {
      {.length = 256, .slices = {rows(0, kRows, MaskKind::kFull, 700, 0, 0, 16)}},
      {.length = 256, .slices = {rows(0, 120, MaskKind::kBand, 256, 300, 3, 253)}},
      {.length = 130,
       .slices = {rows(17, 150, MaskKind::kFull, 150, 0, 0, 130),
                  rows(90, 110, MaskKind::kBand, 130, 177, 11, 100)}},
      {.length = 200, .slices = {rows(0, kRows, MaskKind::kCausal, 0, 0, 0, 200)}}};
  blocks[0].slices[0].kv_heads = {.begin = 1};
  return blocks;
}

struct Place {
  std::vector<std::int64_t> begins;  // of each block of keys
  std::int64_t num_k;
};

// The problem with each block of keys at its place and NaN on all other keys.
TestCase case_at(const Place& place) {
  TestCase c{.name = "invariant",
             .num_q = kRows,
             .num_k = place.num_k,
             .num_q_heads = kQueryHeads,
             .num_kv_heads = kKvHeads,
             .head_dim = kHeadDim,
             .slices = {}};
  const auto blocks = key_blocks();
  for (std::size_t b = 0; b < blocks.size(); ++b)
    for (AttentionSlice s : blocks[b].slices) {
      s.k_begin += place.begins[b];
      c.slices.push_back(s);
    }
  return c;
}

constexpr double kSlopes[] = {0.5, 0.1, 0.03, 0.01, 0.003, 0.001};

void set_bias(TestCase& c) {
  c.slopes.assign(std::begin(kSlopes), std::end(kSlopes));
  c.decay = xpos_decay(kHeadDim, 70.0);  // several references in a block
}

constexpr std::int64_t kRow = kKvHeads * kHeadDim;

std::vector<double> scattered(const std::vector<double>& dense, const Place& place) {
  std::vector<double> x(static_cast<std::size_t>(place.num_k * kRow),
                        std::numeric_limits<double>::quiet_NaN());
  auto from = dense.begin();
  const auto blocks = key_blocks();
  for (std::size_t b = 0; b < blocks.size(); ++b) {
    std::copy_n(from, blocks[b].length * kRow, x.begin() + place.begins[b] * kRow);
    from += blocks[b].length * kRow;
  }
  return x;
}

// Gradients of the blocks one after the other; all others must be 0.
std::vector<double> gathered(std::vector<double> x, const Place& place) {
  std::vector<double> dense;
  const auto blocks = key_blocks();
  for (std::size_t b = 0; b < blocks.size(); ++b) {
    const auto begin = x.begin() + place.begins[b] * kRow;
    dense.insert(dense.end(), begin, begin + blocks[b].length * kRow);
    std::fill_n(begin, blocks[b].length * kRow, 0.0);
  }
  EXPECT_TRUE(std::all_of(x.begin(), x.end(), [](double y) { return y == 0; }));
  return dense;
}

Place packed() {
  Place place{.begins = {}, .num_k = 0};
  for (const KeyBlock& block : key_blocks()) {
    place.begins.push_back(place.num_k);
    place.num_k += block.length;
  }
  return place;
}

TEST_P(AttentionInvariantTest, KeysMayLieAnywhereInTheirBlock) {
  const DType dtype = GetParam().dtype;
  const Place reference_place = packed();
  for (const char* bias : {"none", "slopes", "slopes and decay"}) {
    const std::string_view kind = bias;
    const auto configured = [&](const Place& place) {
      TestCase c = case_at(place);
      c.invariant = true;
      if (kind != "none") set_bias(c);
      if (kind == "slopes") c.decay.clear();
      return c;
    };
    const TestCase c = configured(reference_place);
    const AttentionProblem p = make_problem(c, dtype);
    AttentionUnderTest one = engine(1);
    const EngineResult expected = run_engine(one, c, p, dtype);
    expect_matches(expected, reference_attention(p), dtype, c);
    // Shuffled, off all grids, with keys between them that nobody sees.
    const std::vector<Place> places = {reference_place,
                                       {.begins = {700, 1, 431, 999}, .num_k = 1200},
                                       {.begins = {5013, 3300, 77, 1801}, .num_k = 5300}};
    for (const Place& place : places)
      for (const int num_threads : kThreadSanitizer ? std::vector{1} : thread_counts({1, 2, 4})) {
        SCOPED_TRACE(fmt::format("{} keys, {} threads, bias {}", place.num_k, num_threads, kind));
        const TestCase moved = configured(place);
        AttentionProblem q = p;
        q.k = scattered(p.k, place);
        q.v = scattered(p.v, place);
        AttentionUnderTest e = engine(num_threads);
        const EngineResult r = run_engine(e, moved, q, dtype);
        EXPECT_TRUE(r.out == expected.out);
        EXPECT_TRUE(r.lse == expected.lse);
        EXPECT_TRUE(r.dq == expected.dq);
        EXPECT_EQ(gathered(r.dk.doubles(), place), expected.dk.doubles());
        EXPECT_EQ(gathered(r.dv.doubles(), place), expected.dv.doubles());
      }
  }
}

// Columns [begin, end) of rows of `width` numbers.
std::vector<double> columns(const std::vector<double>& x, std::int64_t width, std::int64_t begin,
                            std::int64_t end) {
  std::vector<double> part;
  for (auto row = x.begin(); row != x.end(); row += width)
    part.insert(part.end(), row + begin, row + end);
  return part;
}

// The case and problem of `count` query heads from `head` on, which read one KV head.
std::pair<TestCase, AttentionProblem> heads_of(TestCase c, AttentionProblem p, std::int64_t head,
                                               std::int64_t count) {
  const std::int64_t kv_head = head / (kQueryHeads / kKvHeads);
  for (auto* x : {&p.q, &p.dout})
    *x = columns(*x, kQueryHeads * kHeadDim, head * kHeadDim, (head + count) * kHeadDim);
  for (auto* x : {&p.k, &p.v}) *x = columns(*x, kRow, kv_head * kHeadDim, (kv_head + 1) * kHeadDim);
  p.slopes = {p.slopes.begin() + head, p.slopes.begin() + head + count};
  c.num_q_heads = count;
  c.num_kv_heads = 1;
  std::erase_if(c.slices, [&](const auto& s) { return s.kv_heads.begin > kv_head; });
  for (AttentionSlice& s : c.slices) s.kv_heads = {};
  return {c, p};
}

// One KV head or one query head at a time gives what all give together, as when Ulysses deals out
// heads and replicates those of KV.
TEST_P(AttentionInvariantTest, HeadsMayBeComputedApart) {
  const DType dtype = GetParam().dtype;
  constexpr std::int64_t kGroup = kQueryHeads / kKvHeads, kWidth = kQueryHeads * kHeadDim;
  TestCase c = case_at(packed());
  c.invariant = true;
  set_bias(c);
  const AttentionProblem p = make_problem(c, dtype);
  AttentionUnderTest e = engine(1);
  const EngineResult all = run_engine(e, c, p, dtype);
  for (const std::int64_t count : {std::int64_t{1}, kGroup})
    for (std::int64_t head = 0; head < kQueryHeads; head += count) {
      SCOPED_TRACE(fmt::format("heads [{}, +{})", head, count));
      const auto [part, problem] = heads_of(c, p, head, count);
      const EngineResult r = run_engine(e, part, problem, dtype);
      const std::int64_t begin = head * kHeadDim, end = begin + count * kHeadDim;
      EXPECT_EQ(r.out.doubles(), columns(all.out.doubles(), kWidth, begin, end));
      EXPECT_EQ(r.dq.doubles(), columns(all.dq.doubles(), kWidth, begin, end));
      if (count < kGroup) continue;  // dk and dv sum over a group
      const std::int64_t k_begin = head / kGroup * kHeadDim, k_end = k_begin + kHeadDim;
      EXPECT_EQ(r.dk.doubles(), columns(all.dk.doubles(), kRow, k_begin, k_end));
      EXPECT_EQ(r.dv.doubles(), columns(all.dv.doubles(), kRow, k_begin, k_end));
    }
}

TEST_P(AttentionInvariantTest, ThreadsChangeNothingWithHeadRangesAndBias) {
  if (kThreadSanitizer) GTEST_SKIP() << "OpenMP's runtime is not instrumented";
  if (!GetParam().repeatable) GTEST_SKIP() << "adds in any order";
  TestCase c{"threads", 700, 700, 6, 3, 32, {whole(700, 700, MaskKind::kCausal)}, {400, 300}};
  c.slices.push_back({.q_begin = 100,
                      .q_len = 600,
                      .k_begin = 50,
                      .k_len = 500,
                      .position_diagonal = 90000,
                      .kv_heads = {.begin = 1, .end = 2}});
  c.slices[0].kv_heads = {.begin = 0, .end = 2};
  c.slopes = {0.5, 0.1, 0.03, 1e-4, 1e-5, 0.001};
  c.decay = xpos_decay(32, 10.0);
  const AttentionProblem p = make_problem(c, GetParam().dtype);
  AttentionUnderTest one = engine(1);
  const EngineResult expected = run_engine(one, c, p, GetParam().dtype);
  for (const int num_threads : thread_counts({1, 3, 8})) {
    AttentionUnderTest many = engine(num_threads);
    EXPECT_TRUE(run_engine(many, c, p, GetParam().dtype) == expected) << num_threads << " threads";
  }
}

INSTANTIATE_TEST_SUITE_P(All, AttentionInvariantTest, ::testing::ValuesIn(all_variants()),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace farspan::testing
