#include "parallel/attention_plan.h"

#include <algorithm>
#include <numeric>

#include "parallel/kv_journeys.h"
#include "parallel/plan_pieces.h"
#include "parallel/tile_overlap.h"

namespace farspan {
namespace {

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

void append(std::vector<IndexRange>& ranges, IndexRange next, std::int64_t& count) {
  count += next.size();
  if (!ranges.empty() && ranges.back().end == next.begin)
    ranges.back().end = next.end;
  else
    ranges.push_back(next);
}

// Local rows of an owner to rows of a block that holds some of them.
class RowMap {
 public:
  void add(std::int64_t begin, std::int64_t end) {
    runs_.push_back({begin, end, rows_});
    rows_ += end - begin;
  }
  std::int64_t rows() const { return rows_; }
  // Lookups mostly ascend: the run of the last one, or the next, nearly always has it.
  std::int64_t operator()(std::int64_t row) {
    const auto holds = [&](std::size_t i) {
      return i < runs_.size() && runs_[i].begin <= row && row < runs_[i].end;
    };
    if (!holds(at_) && !holds(++at_)) {
      const auto after = std::partition_point(runs_.begin(), runs_.end(),
                                              [&](const Run& r) { return r.begin <= row; });
      FARSPAN_CHECK(after != runs_.begin() && row < (after - 1)->end, "row {} is not in the block",
                    row);
      at_ = static_cast<std::size_t>(after - 1 - runs_.begin());
    }
    return runs_[at_].block_row + (row - runs_[at_].begin);
  }

 private:
  struct Run {
    std::int64_t begin, end, block_row;
  };
  std::vector<Run> runs_;
  std::int64_t rows_ = 0;
  std::size_t at_ = 0;
};

}  // namespace

struct AttentionPlanner::State {
  explicit State(const PlanRequest& request, int only_rank = -1)
      : documents(request, only_rank),
        num_ranks(request.layout.num_ranks()),
        max_rows(request.layout.max_local_tokens()),
        gather(request.gather),
        block(request.block),
        sequence_length(request.sequence_length),
        journeys(kv_journeys(documents, num_ranks)) {
    for (int r = 0; r < num_ranks; ++r) {
      local_rows.push_back(request.layout.local_tokens(r));
      for (const KvJourney& j : journeys[at(r)]) num_hops = std::max(num_hops, j.farthest + 1);
    }
  }

  ShardedDocuments documents;
  int num_ranks;
  std::vector<std::int64_t> local_rows;
  std::int64_t max_rows;
  bool gather;
  std::int64_t block, sequence_length;
  std::vector<std::vector<KvJourney>> journeys;
  int num_hops = 1;
};

namespace {

// One rank's plan. Slices are found document by document, for all hops at once, with keys as local
// rows of their owner; then each hop's (and the gathered) block tells where those rows are in it.
template <typename State>
class PlanBuilder {
 public:
  PlanBuilder(const State& state, int rank)
      : state_(state), docs_(state.documents), rank_(rank), found_(at(state.num_ranks)) {}

  AttentionPlan build() {
    plan_.num_ranks = state_.num_ranks;
    plan_.local_rows = state_.local_rows[at(rank_)];
    plan_.max_rows = state_.max_rows;
    plan_.position_stride = docs_.stride();
    find_slices();
    if (state_.gather) make_gather();
    for (int h = 0; h < state_.num_hops; ++h) add_hop(h);
    for (const AttentionPlan::Hop& hop : plan_.hops) plan_.visible_pairs += hop.visible_pairs;
    return std::move(plan_);
  }

 private:
  // Where a slice's first query and key stand in the micro-batch.
  struct Corner {
    std::int64_t query, key;
  };
  struct Found {  // of one owner
    std::vector<AttentionSlice> slices;
    std::vector<Corner> corners;  // with blocks only
    double pairs = 0;             // times local KV heads
  };

  void find_slices() {
    std::vector<TokenPiece> queries, keys;
    for (const std::size_t i : docs_.shares_of_rank(rank_)) {
      const DocumentShare& own = docs_.share(i);
      const ShardedDocument& document = docs_.documents()[own.document];
      for (const PlanTile& tile : docs_.tiles_of(document)) {
        queries.clear();
        docs_.collect(own, tile.mask.q, tile.mask, queries);
        if (queries.empty()) continue;
        for (const DocumentShare& share : docs_.shares_of(document)) {
          keys.clear();
          docs_.collect(share, tile.mask.k, tile.mask, keys);
          meet(queries, keys, tile, found_[at(share.rank)]);
        }
      }
    }
  }

  void meet(const std::vector<TokenPiece>& queries, const std::vector<TokenPiece>& keys,
            const PlanTile& tile, Found& found) const {
    const std::int64_t stride = docs_.stride();
    for (const TokenPiece& query : queries)
      for (const TokenPiece& key : pieces_between(keys, query.first - tile.mask.max_distance,
                                                  query.last(stride) - tile.mask.min_distance)) {
        const TileOverlap overlap = tile_overlap(query, key, tile.mask, stride);
        if (overlap.empty()) continue;
        double pairs = 0;
        AttentionSlice slice = slice_of(overlap, query, key, pairs);
        slice.kv_heads = tile.local;
        if (docs_.has_positions())
          slice.position_diagonal =
              query.position - key.position + (overlap.q_begin - overlap.k_begin) * stride;
        found.slices.push_back(slice);
        found.pairs += pairs * static_cast<double>(tile.num_heads);
        if (state_.block > 0)
          found.corners.push_back(
              {query.first + overlap.q_begin * stride, key.first + overlap.k_begin * stride});
      }
  }

  void add_hop(int h) {
    const int owner = (rank_ - h + state_.num_ranks) % state_.num_ranks;
    AttentionPlan::Hop hop;
    RowMap rows;
    if (h == 0) hop.kv_rows = plan_.local_rows;
    for (const KvJourney& j : state_.journeys[at(owner)]) {
      if (j.farthest < h) continue;
      const std::int64_t begin = h == 0 ? j.begin : rows.rows();
      const IndexRange here{begin, begin + (j.end - j.begin)};
      if (h > 0) rows.add(j.begin, j.end);
      if (j.farthest > h)
        append(hop.forwarded, here, hop.num_forwarded);
      else
        append(hop.ended, here, hop.num_ended);
    }
    if (h > 0) hop.kv_rows = rows.rows();
    for (const KvJourney& j : state_.journeys[at(rank_)])
      if (j.farthest == h) append(hop.returned, {j.begin, j.end}, hop.num_returned);
    Found& found = found_[at(owner)];
    hop.visible_pairs = found.pairs / static_cast<double>(docs_.num_local_heads());
    hop.slices = std::move(found.slices);
    if (h > 0)
      for (AttentionSlice& slice : hop.slices) slice.k_begin = rows(slice.k_begin);
    plan_.hops.push_back(std::move(hop));
  }

  // Leaves found_ as it is.
  void make_gather() {
    AttentionPlan::Gather& gather = plan_.gather;
    const bool own_too = state_.block > 0;
    gather.sent = kv_needs(docs_, rank_, state_.num_ranks);
    if (!own_too) gather.sent[at(rank_)].clear();
    for (const auto& ranges : gather.sent) {
      gather.num_sent.push_back(0);
      for (const IndexRange& r : ranges) gather.num_sent.back() += r.size();
    }
    std::vector<Corner> corners;
    for (int owner = 0; owner < state_.num_ranks; ++owner) {
      gather.num_received.push_back(0);
      if (owner == rank_ && !own_too) continue;
      const Found& found = found_[at(owner)];
      std::vector<IndexRange> needed;
      for (const AttentionSlice& s : found.slices)
        needed.push_back({s.k_begin, s.k_begin + s.k_len});
      normalize(needed);
      RowMap rows;
      for (const IndexRange& r : needed) rows.add(r.begin, r.end);
      for (AttentionSlice s : found.slices) {
        s.k_begin = gather.rows + rows(s.k_begin);
        gather.slices.push_back(s);
      }
      corners.insert(corners.end(), found.corners.begin(), found.corners.end());
      gather.num_received.back() = rows.rows();
      gather.rows += rows.rows();
    }
    if (own_too) order_by_block(corners);
  }

  // Query blocks in order; in each, keys in order, whoever owns them.
  void order_by_block(const std::vector<Corner>& corners) {
    const auto block_of = [&](std::int64_t index) {
      return index - index % state_.sequence_length % state_.block;
    };
    std::vector<std::size_t> order(corners.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      const std::int64_t block_a = block_of(corners[a].query), block_b = block_of(corners[b].query);
      if (block_a != block_b) return block_a < block_b;
      if (corners[a].key != corners[b].key) return corners[a].key < corners[b].key;
      return corners[a].query < corners[b].query;
    });
    std::vector<AttentionSlice> slices;
    slices.reserve(order.size());
    for (const std::size_t i : order) slices.push_back(plan_.gather.slices[i]);
    plan_.gather.slices = std::move(slices);
  }

  const State& state_;
  const ShardedDocuments& docs_;
  int rank_;
  std::vector<Found> found_;  // by owner
  AttentionPlan plan_;
};

}  // namespace

AttentionPlanner::AttentionPlanner(const PlanRequest& request)
    : state_(std::make_unique<const State>(request)) {}
AttentionPlanner::~AttentionPlanner() = default;
AttentionPlanner::AttentionPlanner(AttentionPlanner&&) noexcept = default;
AttentionPlanner& AttentionPlanner::operator=(AttentionPlanner&&) noexcept = default;

int AttentionPlanner::num_ranks() const { return state_->num_ranks; }

AttentionPlan AttentionPlanner::plan(int rank) const {
  FARSPAN_CHECK(rank >= 0 && rank < state_->num_ranks, "rank {} of {}", rank, state_->num_ranks);
  return PlanBuilder(*state_, rank).build();
}

AttentionPlan plan_attention(const PlanRequest& request, int rank) {
  FARSPAN_CHECK(rank >= 0 && rank < request.layout.num_ranks(), "rank {} of {}", rank,
                request.layout.num_ranks());
  const AttentionPlanner::State state(request, rank);
  return PlanBuilder(state, rank).build();
}

std::int64_t AttentionPlan::rows_sent() const {
  std::int64_t rows = 0;
  for (const Hop& hop : hops) rows += hop.num_forwarded;
  return rows;
}

std::int64_t AttentionPlan::gradient_rows_sent() const {
  std::int64_t rows = 0;
  for (std::size_t h = 1; h < hops.size(); ++h) rows += hops[h].num_forwarded + hops[h].num_ended;
  return rows;
}

}  // namespace farspan
