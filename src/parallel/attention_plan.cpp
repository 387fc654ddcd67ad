#include "parallel/attention_plan.h"

#include <algorithm>

namespace farspan {
namespace {

// Tokens [begin, end) of one document held by one rank; `row` is the first one's local row.
struct Piece {
  std::int64_t begin, end, row;
};

// Local rows [begin, end) of a KV owner and the distance to the farthest rank that needs them.
struct Journey {
  std::int64_t begin, end;
  int farthest;
};

std::vector<IndexRange> documents_of(std::span<const std::int32_t> segments) {
  std::vector<IndexRange> documents;
  const auto n = static_cast<std::int64_t>(segments.size());
  for (std::int64_t begin = 0; begin < n;) {
    std::int64_t end = begin + 1;
    while (end < n &&
           segments[static_cast<std::size_t>(end)] == segments[static_cast<std::size_t>(begin)])
      ++end;
    documents.push_back({begin, end});
    begin = end;
  }
  return documents;
}

class Planner {
 public:
  Planner(std::span<const std::int32_t> segments, const SequenceLayout& layout)
      : layout_(layout), num_ranks_(layout.num_ranks()), documents_(documents_of(segments)) {
    FARSPAN_CHECK(static_cast<std::int64_t>(segments.size()) == layout.num_tokens(),
                  "{} segments for {} tokens", segments.size(), layout.num_tokens());
    cut_into_pieces();
    find_journeys();
  }

  AttentionPlan plan(int rank) const {
    AttentionPlan plan;
    plan.num_ranks = num_ranks_;
    plan.local_rows = layout_.local_tokens(rank);
    plan.max_rows = layout_.max_local_tokens();
    for (int h = 0; h <= farthest_of_all_; ++h) {
      const int owner = (rank - h + num_ranks_) % num_ranks_;
      AttentionPlan::Hop hop;
      route(owner, h, hop);
      for (const Journey& j : journeys_[at(rank)])
        if (h > 0 && j.farthest == h) append(hop.returned, {j.begin, j.end}, hop.num_returned);
      add_slices(rank, owner, h, hop, plan.visible_pairs);
      plan.hops.push_back(std::move(hop));
    }
    return plan;
  }

 private:
  static std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

  static void append(std::vector<IndexRange>& ranges, IndexRange next, std::int64_t& count) {
    if (next.size() == 0) return;
    count += next.size();
    if (!ranges.empty() && ranges.back().end == next.begin)
      ranges.back().end = next.end;
    else
      ranges.push_back(next);
  }

  // pieces_[rank]: in local order, hence by document; piece_documents_ names their documents.
  void cut_into_pieces() {
    pieces_.resize(at(num_ranks_));
    piece_documents_.resize(at(num_ranks_));
    last_index_.assign(documents_.size(), {});
    for (int rank = 0; rank < num_ranks_; ++rank) {
      std::int64_t row = 0;
      std::size_t document = 0;
      for (const IndexRange& range : layout_.ranges(rank)) {
        for (std::int64_t begin = range.begin; begin < range.end;) {
          while (documents_[document].end <= begin) ++document;
          const std::int64_t end = std::min(range.end, documents_[document].end);
          pieces_[at(rank)].push_back({begin, end, row});
          piece_documents_[at(rank)].push_back(document);
          auto& lasts = last_index_[document];
          if (lasts.empty() || lasts.back().rank != rank)
            lasts.push_back({rank, end - 1});
          else
            lasts.back().index = end - 1;
          row += end - begin;
          begin = end;
        }
      }
    }
  }

  // A key at index j is needed by every rank that holds a later token of its document.
  void find_journeys() {
    journeys_.resize(at(num_ranks_));
    for (int owner = 0; owner < num_ranks_; ++owner) {
      for (std::size_t p = 0; p < pieces_[at(owner)].size(); ++p) {
        const Piece& piece = pieces_[at(owner)][p];
        // Ranks by how late their last token is, latest first: the keys up to there go to them.
        std::vector<LastIndex> users;
        for (const LastIndex& last : last_index_[piece_documents_[at(owner)][p]])
          if (last.rank != owner && last.index > piece.begin) users.push_back(last);
        std::sort(users.begin(), users.end(),
                  [](const LastIndex& a, const LastIndex& b) { return a.index > b.index; });
        // From the piece's end backwards: the further back a key, the more ranks need it.
        std::vector<Journey> parts;
        std::int64_t end = piece.end;
        int farthest = 0;
        for (const LastIndex& user : users) {
          const int distance = (user.rank - owner + num_ranks_) % num_ranks_;
          if (distance <= farthest) continue;
          const std::int64_t border = std::min(end, user.index);  // keys below `index` are needed
          if (border < end) parts.push_back({border, end, farthest});
          end = border;
          farthest = distance;
        }
        if (end > piece.begin) parts.push_back({piece.begin, end, farthest});
        for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
          const std::int64_t shift = piece.row - piece.begin;
          journeys_[at(owner)].push_back({part->begin + shift, part->end + shift, part->farthest});
          farthest_of_all_ = std::max(farthest_of_all_, part->farthest);
        }
      }
    }
  }

  // Which rows of the owner's block are here at hop h, which go on, which end.
  void route(int owner, int h, AttentionPlan::Hop& hop) const {
    for (const Journey& j : journeys_[at(owner)]) {
      if (j.farthest < h) continue;
      const IndexRange rows{hop.kv_rows, hop.kv_rows + (j.end - j.begin)};
      hop.kv_rows = rows.end;
      if (j.farthest > h)
        append(hop.forwarded, rows, hop.num_forwarded);
      else if (h > 0)
        append(hop.ended, rows, hop.num_ended);
    }
  }

  void add_slices(int rank, int owner, int h, AttentionPlan::Hop& hop, double& pairs) const {
    const auto& queries = pieces_[at(rank)];
    const auto& keys = pieces_[at(owner)];
    const auto& query_documents = piece_documents_[at(rank)];
    const auto& key_documents = piece_documents_[at(owner)];
    // Position of the owner's local rows in the squeezed block: a walk along its journeys.
    std::size_t journey = 0;
    std::int64_t squeezed = 0;
    std::vector<std::int64_t> first_row(keys.size());
    for (std::size_t i = 0; i < keys.size(); ++i) {
      while (journey < journeys_[at(owner)].size() &&
             journeys_[at(owner)][journey].begin < keys[i].row) {
        const Journey& j = journeys_[at(owner)][journey++];
        if (j.farthest >= h) squeezed += j.end - j.begin;
      }
      first_row[i] = squeezed;
    }
    std::size_t k_first = 0;
    for (std::size_t q = 0; q < queries.size(); ++q) {
      while (k_first < keys.size() && key_documents[k_first] < query_documents[q]) ++k_first;
      for (std::size_t k = k_first; k < keys.size() && key_documents[k] == query_documents[q];
           ++k) {
        if (keys[k].begin >= queries[q].end) break;
        add_slice(queries[q], keys[k], first_row[k], hop, pairs);
      }
    }
  }

  // The causal part of queries x keys, cropped to the rectangle that holds it. The needed keys are
  // a prefix of their piece, all of them still in the block: they are adjacent there.
  static void add_slice(const Piece& query, const Piece& key, std::int64_t key_row,
                        AttentionPlan::Hop& hop, double& pairs) {
    const std::int64_t q_begin = std::max(query.begin, key.begin);
    const std::int64_t k_end = std::min(key.end, query.end);
    AttentionSlice slice;
    slice.q_begin = query.row + (q_begin - query.begin);
    slice.q_len = query.end - q_begin;
    slice.k_begin = key_row;
    slice.k_len = k_end - key.begin;
    slice.diagonal = q_begin - key.begin;
    slice.kind = q_begin >= k_end - 1 ? MaskKind::kFull : MaskKind::kCausal;
    double area = static_cast<double>(slice.q_len) * static_cast<double>(slice.k_len);
    if (slice.kind == MaskKind::kCausal) {
      // Row i misses the keys after it: k_len - 1 - diagonal - i of them while that is positive.
      const auto missing = static_cast<double>(slice.k_len - 1 - slice.diagonal);
      area -= missing * (missing + 1) / 2;
    }
    pairs += area;
    hop.slices.push_back(slice);
  }

  struct LastIndex {
    int rank;
    std::int64_t index;  // of the rank's last token in the document
  };

  const SequenceLayout& layout_;
  int num_ranks_;
  std::vector<IndexRange> documents_;
  std::vector<std::vector<Piece>> pieces_;
  std::vector<std::vector<std::size_t>> piece_documents_;
  std::vector<std::vector<LastIndex>> last_index_;  // by document
  std::vector<std::vector<Journey>> journeys_;
  int farthest_of_all_ = 0;
};

}  // namespace

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

AttentionPlan plan_attention(const PlanRequest& request, int rank) {
  FARSPAN_CHECK(rank >= 0 && rank < request.layout.num_ranks());
  return Planner(request.segments, request.layout).plan(rank);
}

}  // namespace farspan
