// Runs attention plans on token indices instead of values: what a ring or a gather would compute,
// counted per (query, key, head) and held against the mask's formula.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "parallel/attention_plan.h"
#include "parallel/mask_formula.h"

namespace farspan::testing {

using Indices = std::vector<std::int64_t>;

struct Case {
  std::vector<std::int32_t> segments, positions;
  SequenceLayout layout;
  AttentionPattern pattern;
  std::vector<std::int32_t> local_heads;  // as PlanRequest::local_kv_heads
  std::int64_t num_kv_heads = 1;
  std::int64_t block = 0, sequence_length = 0;
};

inline PlanRequest request_of(const Case& c) {
  return {.segments = c.segments,
          .positions = c.positions,
          .layout = c.layout,
          .pattern = c.pattern,
          .local_kv_heads = c.local_heads,
          .num_kv_heads = c.num_kv_heads,
          .gather = true,
          .block = c.block,
          .sequence_length = c.sequence_length};
}

inline std::vector<AttentionPlan> plans_of(const Case& c) {
  std::vector<AttentionPlan> plans;
  for (int r = 0; r < c.layout.num_ranks(); ++r) plans.push_back(plan_attention(request_of(c), r));
  return plans;
}

inline std::vector<Indices> all_indices(const SequenceLayout& layout) {
  std::vector<Indices> out;
  for (int rank = 0; rank < layout.num_ranks(); ++rank) {
    auto& mine = out.emplace_back();
    for (const IndexRange& r : layout.ranges(rank))
      for (std::int64_t i = r.begin; i < r.end; i += r.stride) mine.push_back(i);
  }
  return out;
}

inline Indices rows_of(const Indices& block, const std::vector<IndexRange>& ranges) {
  Indices out;
  for (const IndexRange& r : ranges) {
    EXPECT_TRUE(0 <= r.begin && r.begin < r.end && r.stride == 1);
    EXPECT_LE(r.end, static_cast<std::int64_t>(block.size()));
    out.insert(out.end(), block.begin() + r.begin, block.begin() + r.end);
  }
  return out;
}

// (query, key, local head) -> times computed.
using Counts = std::map<std::tuple<std::int64_t, std::int64_t, std::int64_t>, int>;

inline bool visible(const AttentionSlice& s, std::int64_t i, std::int64_t j) {
  const std::int64_t delta = i - j + s.diagonal;
  switch (s.kind) {
    case MaskKind::kFull:
      return true;
    case MaskKind::kCausal:
      return delta >= 0;
    case MaskKind::kInverseCausal:
      return delta < s.window;
    case MaskKind::kBand:
      return delta >= 0 && delta < s.window;
  }
  return false;
}

// Computes one slice; checks that every row and column shows something, that both run over indices
// (and, if given, positions) with the plan's stride. Returns pairs, mean over heads.
inline double compute(const Case& c, const AttentionSlice& s, const Indices& queries,
                      const Indices& keys, std::int64_t stride, Counts& computed) {
  const auto at = [](const auto& v, std::int64_t i) {
    return static_cast<std::int64_t>(v.at(static_cast<std::size_t>(i)));
  };
  const std::int64_t heads =
      c.local_heads.empty() ? c.num_kv_heads : static_cast<std::int64_t>(c.local_heads.size());
  const std::int64_t last_head = std::min<std::int64_t>(s.kv_heads.end, heads);
  EXPECT_LT(s.kv_heads.begin, last_head);
  const bool lower = s.kind == MaskKind::kCausal || s.kind == MaskKind::kBand;
  const bool upper = s.kind == MaskKind::kInverseCausal || s.kind == MaskKind::kBand;
  EXPECT_TRUE(!upper || s.window >= 1);
  std::vector<int> row(static_cast<std::size_t>(s.q_len), 0);
  std::vector<int> column(static_cast<std::size_t>(s.k_len), 0);
  bool below = false, above = false;
  double pairs = 0;
  for (std::int64_t i = 0; i < s.q_len; ++i)
    for (std::int64_t j = 0; j < s.k_len; ++j) {
      const std::int64_t q = at(queries, s.q_begin + i), k = at(keys, s.k_begin + j);
      EXPECT_EQ(q - at(queries, s.q_begin), i * stride);
      EXPECT_EQ(k - at(keys, s.k_begin), j * stride);
      if (!c.positions.empty())
        EXPECT_EQ(at(c.positions, q) - at(c.positions, k), (i - j) * stride + s.position_diagonal)
            << "query " << q << ", key " << k;
      else
        EXPECT_EQ(s.position_diagonal, 0);
      below |= i - j + s.diagonal < 0;
      above |= i - j + s.diagonal >= s.window;
      if (!visible(s, i, j)) continue;
      ++row[static_cast<std::size_t>(i)];
      ++column[static_cast<std::size_t>(j)];
      for (std::int64_t h = s.kv_heads.begin; h < last_head; ++h) ++computed[{q, k, h}];
      pairs += static_cast<double>(last_head - s.kv_heads.begin) / static_cast<double>(heads);
    }
  EXPECT_EQ(std::count(row.begin(), row.end(), 0), 0) << "a row that sees nothing";
  EXPECT_EQ(std::count(column.begin(), column.end(), 0), 0) << "a key that nothing sees";
  EXPECT_TRUE(below || !lower) << "a lower border that hides nothing";
  EXPECT_TRUE(above || !upper) << "an upper border that hides nothing";
  return pairs;
}

// Everything that the formula shows, exactly as often, and nothing else.
inline void check_counts(const Case& c, const Counts& computed) {
  const auto n = static_cast<std::int64_t>(c.segments.size());
  const std::int64_t heads =
      c.local_heads.empty() ? c.num_kv_heads : static_cast<std::int64_t>(c.local_heads.size());
  std::size_t expected = 0;
  std::vector<std::int64_t> start(static_cast<std::size_t>(n), 0);  // of a token's document
  for (std::size_t i = 1; i < start.size(); ++i)
    start[i] = c.segments[i] == c.segments[i - 1] ? start[i - 1] : static_cast<std::int64_t>(i);
  for (std::int64_t q = 0; q < n; ++q)
    for (std::int64_t k = 0; k < n; ++k) {
      const std::int64_t begin = start[static_cast<std::size_t>(q)];
      if (start[static_cast<std::size_t>(k)] != begin) continue;
      for (std::int64_t h = 0; h < heads; ++h) {
        const std::int64_t head =
            c.local_heads.empty() ? h : c.local_heads[static_cast<std::size_t>(h)];
        const int times = count_of(c.pattern, q - begin, k - begin, head, c.num_kv_heads);
        if (times == 0) continue;
        ++expected;
        const auto it = computed.find({q, k, h});
        ASSERT_TRUE(it != computed.end())
            << "query " << q << ", key " << k << ", head " << h << " is missing";
        ASSERT_EQ(it->second, times) << "query " << q << ", key " << k << ", head " << h;
      }
    }
  ASSERT_EQ(computed.size(), expected) << "pairs that the mask does not have";
}

inline void check_ring(const Case& c) {
  const std::vector<AttentionPlan> plans = plans_of(c);
  const std::size_t ranks = plans.size(), hops = plans[0].hops.size();
  const std::vector<Indices> local = all_indices(c.layout);
  std::vector<Indices> block = local;
  Counts computed;
  std::vector<double> pairs(ranks, 0);
  for (std::size_t h = 0; h < hops; ++h) {
    std::vector<Indices> next(ranks);
    for (std::size_t r = 0; r < ranks; ++r) {
      const AttentionPlan& plan = plans[r];
      ASSERT_EQ(plan.hops.size(), hops);
      ASSERT_EQ(plan.local_rows, static_cast<std::int64_t>(local[r].size()));
      ASSERT_EQ(plan.max_rows, c.layout.max_local_tokens());
      ASSERT_EQ(plan.num_ranks, static_cast<int>(ranks));
      const AttentionPlan::Hop& hop = plan.hops[h];
      ASSERT_EQ(static_cast<std::int64_t>(block[r].size()), hop.kv_rows);
      double of_hop = 0;
      for (const AttentionSlice& s : hop.slices)
        of_hop += compute(c, s, local[r], block[r], plan.position_stride, computed);
      ASSERT_NEAR(of_hop, hop.visible_pairs, 1e-9 * (1 + of_hop));
      pairs[r] += of_hop;
      // Rows that end here go home, and their owner expects exactly them.
      const std::size_t owner = (r + ranks - h) % ranks;
      ASSERT_EQ(rows_of(block[r], hop.ended), rows_of(local[owner], plans[owner].hops[h].returned));
      const auto forwarded = rows_of(block[r], hop.forwarded);
      ASSERT_EQ(hop.num_forwarded, static_cast<std::int64_t>(forwarded.size()));
      ASSERT_EQ(hop.num_returned,
                static_cast<std::int64_t>(rows_of(local[r], hop.returned).size()));
      if (h > 0)
        ASSERT_EQ(hop.num_ended + hop.num_forwarded, hop.kv_rows);
      else
        ASSERT_EQ(hop.num_ended + hop.num_returned, 0);
      next[(r + 1) % ranks] = forwarded;
    }
    block = next;
  }
  for (const Indices& rows : block) ASSERT_TRUE(rows.empty()) << "rows sent after the last hop";
  bool needed = hops == 1;
  for (const AttentionPlan& plan : plans) {
    needed |= !plan.hops.back().slices.empty();
    ASSERT_NEAR(plan.visible_pairs, pairs[static_cast<std::size_t>(&plan - plans.data())],
                1e-9 * (1 + plan.visible_pairs));
  }
  ASSERT_TRUE(needed) << "a last hop that nobody needs";
  // No row goes further than to a rank that uses it.
  std::map<std::pair<std::size_t, std::int64_t>, std::size_t> farthest;  // owner and local row
  for (std::size_t r = 0; r < ranks; ++r)
    for (std::size_t o = 0; o < ranks; ++o)
      for (const IndexRange& range : plans[o].gather.sent[r])
        for (std::int64_t i = range.begin; i < range.end; ++i)
          farthest[{o, i}] = std::max(farthest[{o, i}], (r + ranks - o) % ranks);
  std::int64_t travelled = 0, expected = 0;
  for (const auto& [row, distance] : farthest) expected += static_cast<std::int64_t>(distance);
  for (const AttentionPlan& plan : plans) travelled += plan.rows_sent();
  ASSERT_EQ(travelled, expected);
  check_counts(c, computed);
}

// The rows of rank r's gathered block.
inline Indices gathered_rows(const std::vector<AttentionPlan>& plans,
                             const std::vector<Indices>& local, std::size_t r) {
  Indices block;
  for (std::size_t owner = 0; owner < plans.size(); ++owner) {
    const auto& sent = plans[owner].gather.sent.at(r);
    const Indices rows = rows_of(local[owner], sent);
    EXPECT_EQ(plans[owner].gather.num_sent.at(r), static_cast<std::int64_t>(rows.size()));
    EXPECT_EQ(plans[r].gather.num_received.at(owner), static_cast<std::int64_t>(rows.size()));
    for (std::size_t i = 1; i < sent.size(); ++i) EXPECT_LT(sent[i - 1].end, sent[i].begin);
    block.insert(block.end(), rows.begin(), rows.end());
  }
  EXPECT_EQ(plans[r].gather.rows, static_cast<std::int64_t>(block.size()));
  return block;
}

inline void check_gather(const Case& c) {
  const std::vector<AttentionPlan> plans = plans_of(c);
  const std::vector<Indices> local = all_indices(c.layout);
  Counts computed;
  for (std::size_t r = 0; r < plans.size(); ++r) {
    const AttentionPlan& plan = plans[r];
    const Indices block = gathered_rows(plans, local, r);
    Counts of_rank;
    if (c.block == 0) {  // the rank's own part stays where it is
      ASSERT_TRUE(plan.gather.sent[r].empty());
      for (const AttentionSlice& s : plan.hops[0].slices)
        compute(c, s, local[r], local[r], plan.position_stride, computed);
    }
    for (const AttentionSlice& s : plan.gather.slices)
      compute(c, s, local[r], block, plan.position_stride, of_rank);
    std::map<std::int64_t, int> used;
    for (const auto& [triple, times] : of_rank) used[std::get<1>(triple)] += times;
    for (const std::int64_t row : block)
      ASSERT_GT(used[row], 0) << "rank " << r << " is sent key " << row << " for nothing";
    for (const auto& [triple, times] : of_rank) computed[triple] += times;
  }
  check_counts(c, computed);
}

}  // namespace farspan::testing
