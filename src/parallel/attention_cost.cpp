#include "parallel/attention_cost.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "parallel/attention_plan.h"
#include "parallel/balance.h"

namespace farspan {
namespace {

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

std::int64_t row_values(const HeadShape& heads, std::int64_t kv_heads) {
  return 2 * kv_heads * heads.head_dim;
}

std::vector<std::int32_t> segments_of(std::span<const std::int64_t> documents, std::int64_t n) {
  std::vector<std::int32_t> segments;
  segments.reserve(at(n));
  for (std::size_t d = 0; d < documents.size(); ++d)
    segments.insert(segments.end(), at(documents[d]), static_cast<std::int32_t>(d));
  return segments;
}

// Whether different Ulysses ranks of a place see different keys.
bool depends_on_heads(const AttentionPattern& p) {
  return p.sparse == SparseKind::kDilated || p.sparse == SparseKind::kShifted;
}

double max_over_mean(std::span<const double> values) {
  const double sum = std::accumulate(values.begin(), values.end(), 0.0);
  if (sum <= 0) return 1;
  return *std::max_element(values.begin(), values.end()) * static_cast<double>(values.size()) / sum;
}

// Fills one rank's costs from the plan of its place in the ring.
RankCost cost_of(const AttentionCase& c, const AttentionPlan& plan, const ContextPlace& place) {
  const HeadShare share = ulysses_heads(c.heads.num_heads, c.heads.num_kv_heads, place.ulysses_rank,
                                        place.ulysses_size);
  const double heads =
      static_cast<double>(share.q_end - share.q_begin) / static_cast<double>(c.heads.num_heads);
  const std::int64_t values = row_values(c.heads, static_cast<std::int64_t>(share.kv_heads.size()));
  const std::int64_t kv_bytes = values * static_cast<std::int64_t>(size_of(c.heads.compute));
  RankCost cost;
  for (std::size_t h = 0; h < plan.hops.size(); ++h) {
    const AttentionPlan::Hop& hop = plan.hops[h];
    cost.area.push_back(hop.visible_pairs * heads);
    if (c.attention == "allgather") {
      const int to = (place.ring_rank + static_cast<int>(h)) % plan.num_ranks;
      cost.forward_bytes.push_back(h == 0 ? 0 : plan.gather.num_sent[at(to)] * kv_bytes);
      continue;
    }
    cost.forward_bytes.push_back(hop.num_forwarded * kv_bytes);
    const std::int64_t gradient_rows = h == 0 ? 0 : hop.num_forwarded + hop.num_ended;
    cost.gradient_bytes.push_back(gradient_rows * values *
                                  static_cast<std::int64_t>(sizeof(float)));
  }
  cost.total = attention_bytes(c.attention, plan, place, c.heads, c.block > 0);
  return cost;
}

struct PatternTotals {
  PatternCost cost;
  std::vector<double> slices;  // [hop]
  std::int64_t unique_rows = 0;
};

PatternTotals cost_of_pattern(const AttentionCase& c, const AttentionPattern& pattern,
                              const SequenceLayout& layout,
                              const std::vector<std::int32_t>& segments, bool gather) {
  PatternTotals out;
  out.cost.description = pattern.description();
  const int ring = layout.num_ranks();
  const int variants = depends_on_heads(pattern) ? c.ulysses : 1;
  out.cost.ranks.resize(at(c.ranks));
  for (int v = 0; v < variants; ++v) {
    const HeadShare share = ulysses_heads(c.heads.num_heads, c.heads.num_kv_heads, v, c.ulysses);
    const AttentionPlanner planner({.segments = segments,
                                    .positions = {},
                                    .layout = layout,
                                    .pattern = pattern,
                                    .local_kv_heads = share.kv_heads,
                                    .num_kv_heads = c.heads.num_kv_heads,
                                    .gather = gather,
                                    .block = c.block,
                                    .sequence_length = c.num_tokens() / c.sequences});
    for (int place = 0; place < ring; ++place) {
      const AttentionPlan plan = planner.plan(place);
      for (int u = variants > 1 ? v : 0; u < (variants > 1 ? v + 1 : c.ulysses); ++u)
        out.cost.ranks[at(place * c.ulysses + u)] = cost_of(c, plan, {place, ring, u, c.ulysses});
      if (out.slices.size() < plan.hops.size()) out.slices.resize(plan.hops.size());
      const double ranks = variants > 1 ? 1 : c.ulysses;
      for (std::size_t h = 0; h < plan.hops.size(); ++h)
        out.slices[h] += static_cast<double>(plan.hops[h].slices.size()) * ranks;
      for (std::size_t from = 0; from < plan.gather.num_received.size(); ++from)
        if (static_cast<int>(from) != place) out.unique_rows += plan.gather.num_received[from];
    }
  }
  return out;
}

std::vector<RowArea> areas_of(const AttentionCase& c) {
  std::vector<RowArea> areas;
  for (const AttentionPattern& p : c.patterns) areas.emplace_back(p, c.heads.num_kv_heads);
  return areas;
}

std::vector<double> shares_of(const AttentionCase& c) {
  std::vector<double> weights = c.weights;
  if (weights.empty()) weights.assign(c.patterns.size(), 1.0);
  FARSPAN_CHECK(weights.size() == c.patterns.size(), "{} weights, {} patterns", weights.size(),
                c.patterns.size());
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  FARSPAN_CHECK(sum > 0, "no layers");
  for (double& w : weights) w /= sum;
  return weights;
}

// Means over the layers of what the patterns cost.
void add_pattern(AttentionSummary& s, PatternTotals&& p, double weight) {
  p.cost.weight = weight;
  std::size_t hops = s.hops.size();
  for (const RankCost& r : p.cost.ranks) hops = std::max(hops, r.area.size());
  s.hops.resize(hops);
  for (auto& areas : s.area_by_hop) areas.resize(hops);
  for (std::size_t r = 0; r < p.cost.ranks.size(); ++r) {
    const RankCost& rank = p.cost.ranks[r];
    for (std::size_t h = 0; h < rank.area.size(); ++h) {
      s.area_by_hop[r][h] += weight * rank.area[h];
      s.area[r] += weight * rank.area[h];
      s.hops[h].bytes += weight * static_cast<double>(rank.forward_bytes[h]);
    }
    s.bytes_forward += weight * static_cast<double>(rank.total.forward);
    s.bytes_backward += weight * static_cast<double>(rank.total.backward);
  }
  for (std::size_t h = 0; h < p.slices.size(); ++h) s.hops[h].slices += weight * p.slices[h];
  s.patterns.push_back(std::move(p.cost));
}

void finish(AttentionSummary& s) {
  for (std::size_t h = 0; h < s.hops.size(); ++h) {
    for (const auto& areas : s.area_by_hop) {
      s.hops[h].area_max = std::max(s.hops[h].area_max, areas[h]);
      s.hops[h].area_mean += areas[h] / s.ranks;
    }
  }
  s.area_max_over_mean = max_over_mean(s.area);
  s.tokens_max_over_mean = max_over_mean(std::vector<double>(s.tokens.begin(), s.tokens.end()));
}

void check_case(const AttentionCase& c) {
  FARSPAN_CHECK(is_legal(c), "{} with ulysses {} on {} ranks, {} heads", c.attention, c.ulysses,
                c.ranks, c.heads.num_heads);
  FARSPAN_CHECK(c.sequences > 0 && c.num_tokens() % c.sequences == 0, "{} tokens in {} sequences",
                c.num_tokens(), c.sequences);
}

}  // namespace

std::int64_t AttentionCase::num_tokens() const {
  return std::accumulate(documents.begin(), documents.end(), std::int64_t{0});
}

std::vector<std::int64_t> document_lengths(std::span<const std::int32_t> segments) {
  std::vector<std::int64_t> lengths;
  for (std::size_t i = 0; i < segments.size(); ++i) {
    if (i == 0 || segments[i] != segments[i - 1]) lengths.push_back(0);
    ++lengths.back();
  }
  return lengths;
}

std::string_view layout_name(LayoutKind kind) {
  switch (kind) {
    case LayoutKind::kContiguous:
      return "contiguous";
    case LayoutKind::kZigzag:
      return "zigzag";
    case LayoutKind::kStriped:
      return "striped";
    case LayoutKind::kBalanced:
      return "balanced";
  }
  FARSPAN_CHECK(false, "layout {}", static_cast<int>(kind));
  return {};
}

SequenceLayout attention_layout(const AttentionCase& c) {
  std::int64_t stride = 1;
  for (const AttentionPattern& p : c.patterns) stride = std::lcm(stride, p.row_stride());
  const int places = c.ranks / c.ulysses;
  const std::int64_t length = c.num_tokens() / c.sequences;
  const std::int64_t block = std::max<std::int64_t>(1, c.block);
  if (c.layout == LayoutKind::kBalanced) {
    const std::vector<RowArea> areas = areas_of(c);
    return balanced_layout({.documents = c.documents,
                            .ranks = places,
                            .areas = areas,
                            .weights = c.weights,
                            .block = block,
                            .sequence_length = length})
        .fitted(stride);
  }
  return SequenceLayout::make(c.layout, c.sequences, length, places, block).fitted(stride);
}

double dense_flops_per_token(const config::Model& m) {
  const auto hidden = static_cast<double>(m.hidden_size());
  const auto queries = static_cast<double>(m.num_attention_heads() * m.head_dim());
  const auto keys = static_cast<double>(m.num_key_value_heads() * m.head_dim());
  const double head = hidden * static_cast<double>(m.vocab_size()) /
                      static_cast<double>(std::max<std::int64_t>(1, m.num_hidden_layers()));
  return 2 * (2 * hidden * queries + 2 * hidden * keys +
              3 * hidden * static_cast<double>(m.intermediate_size()) + head);
}

AttentionCase attention_case(const config::RunConfig& config, std::vector<std::int64_t> documents,
                             std::int64_t sequences) {
  const config::Model& m = config.model();
  const config::Parallel& parallel = config.parallel();
  AttentionCase c;
  c.documents = std::move(documents);
  c.sequences = sequences;
  const LayerPatterns layers = layer_patterns(m);
  c.patterns = layers.patterns;
  c.weights.assign(layers.patterns.size(), 0);
  for (const int pattern : layers.of_layer) c.weights[at(pattern)] += 1;
  c.layout = parallel.layout() == "auto" ? LayoutKind::kZigzag : layout_kind(parallel.layout());
  c.attention = parallel.attention() == "auto" ? "ring" : parallel.attention();
  c.ranks = static_cast<int>(parallel.context());
  const bool groups = c.attention == "ulysses" || c.attention == "hybrid";
  c.ulysses = groups ? static_cast<int>(parallel.ulysses()) : 1;
  c.heads = {.num_heads = m.num_attention_heads(),
             .num_kv_heads = m.num_key_value_heads(),
             .head_dim = m.head_dim(),
             .compute = config.train().precision() == "fp32" ? DType::kF32 : DType::kBF16};
  c.dense_flops_per_token = dense_flops_per_token(m);
  return c;
}

AttentionSummary summarize(const AttentionCase& c, const SummaryOptions& options) {
  check_case(c);
  const int ring = c.ranks / c.ulysses;
  const std::int64_t n = c.num_tokens();
  AttentionSummary s;
  s.layout = c.layout;
  s.attention = c.attention;
  s.ranks = c.ranks;
  s.ring = ring;
  s.ulysses = c.ulysses;
  s.heads = c.heads;
  s.dense_flops_per_token = c.dense_flops_per_token;
  s.invariant = c.block > 0;
  s.num_documents = static_cast<std::int64_t>(c.documents.size());
  s.sequences = c.sequences;
  s.num_tokens = n;
  s.area.assign(at(c.ranks), 0);
  s.area_by_hop.resize(at(c.ranks));

  const std::vector<std::int32_t> segments = segments_of(c.documents, n);
  const SequenceLayout layout = attention_layout(c);
  for (int place = 0; place < ring; ++place)
    for (int u = 0; u < c.ulysses; ++u)
      s.tokens.push_back(ulysses_share(layout.local_tokens(place), u, c.ulysses).size());

  const double row_bytes = static_cast<double>(row_values(c.heads, c.heads.num_kv_heads)) *
                           static_cast<double>(size_of(c.heads.compute));
  s.bytes_ring_total = static_cast<double>(n) * (c.ranks - 1) * row_bytes;
  const std::vector<double> shares = shares_of(c);
  const bool own_unique = options.references && c.ulysses == 1;
  for (std::size_t p = 0; p < c.patterns.size(); ++p) {
    PatternTotals totals = cost_of_pattern(c, c.patterns[p], layout, segments,
                                           own_unique || c.attention == "allgather");
    if (own_unique)
      s.bytes_unique += shares[p] * static_cast<double>(totals.unique_rows) * row_bytes;
    add_pattern(s, std::move(totals), shares[p]);
  }
  finish(s);
  if (!options.references) return s;
  const std::vector<RowArea> areas = areas_of(c);
  s.bytes_bound =
      row_bytes *
      traffic_lower_bound(
          {.documents = c.documents, .ranks = c.ranks, .areas = areas, .weights = c.weights});
  if (c.ulysses > 1) {
    AttentionCase plain = c;  // the same layout over all ranks, without all-to-all
    plain.attention = "ring";
    plain.ulysses = 1;
    s.bytes_unique = summarize(plain).bytes_unique;
  }
  return s;
}

}  // namespace farspan
