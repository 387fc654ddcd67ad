#include "parallel/plan_pieces.h"

#include <algorithm>
#include <unordered_map>

namespace farspan {
namespace {

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

// Borders that no piece may cross: of blocks (counted from a sequence's start), and places where
// positions do not step with the index.
class Borders {
 public:
  Borders(const PlanRequest& request, std::int64_t stride)
      : positions_(request.positions),
        stride_(stride),
        block_(request.block),
        sequence_(request.sequence_length) {
    FARSPAN_CHECK(positions_.empty() || positions_.size() == request.segments.size(),
                  "{} positions for {} tokens", positions_.size(), request.segments.size());
    FARSPAN_CHECK(block_ >= 0 && (block_ == 0 || sequence_ > 0), "blocks of {} in sequences of {}",
                  block_, sequence_);
    // A jump between documents cuts nothing that is not cut anyway.
    for (std::size_t i = 1; i < positions_.size(); ++i)
      if (positions_[i] != positions_[i - 1] + 1) jumps_.push_back(static_cast<std::int64_t>(i));
  }

  std::int64_t position(std::int64_t index) const {
    return positions_.empty() ? 0 : positions_[at(index)];
  }

  // How many of the `count` tokens first, first + stride, ... belong together.
  std::int64_t together(std::int64_t first, std::int64_t count) const {
    if (block_ > 0) count = std::min(count, (block_end(first) - first + stride_ - 1) / stride_);
    if (jumps_.empty() || count == 1) return count;
    const std::int64_t last = first + (count - 1) * stride_;
    const auto jump = std::upper_bound(jumps_.begin(), jumps_.end(), first);
    if (jump == jumps_.end() || *jump > last) return count;
    std::int64_t n = (*jump - first + stride_ - 1) / stride_;  // those before the jump
    while (n < count && joins(first + n * stride_)) ++n;
    return n;
  }

  // Whether a token belongs with the one that is `stride` before it.
  bool joins(std::int64_t index) const {
    const std::int64_t before = index - stride_;
    return (block_ == 0 || block_end(before) > index) &&
           (positions_.empty() || position(index) - position(before) == stride_);
  }

  // A layout whose runs do not end with blocks would cut rows where another layout does not.
  void check_run(const IndexRange& run) const {
    if (block_ == 0 || stride_ != 1) return;
    FARSPAN_CHECK(run.begin == block_begin(run.begin) && run.end == block_end(run.end - 1),
                  "run [{}, {}) cuts a block of {}", run.begin, run.end, block_);
  }

 private:
  std::int64_t block_begin(std::int64_t index) const { return index - index % sequence_ % block_; }
  std::int64_t block_end(std::int64_t index) const {
    const std::int64_t sequence_end = index - index % sequence_ + sequence_;
    return std::min(sequence_end, block_begin(index) + block_);
  }

  std::span<const std::int32_t> positions_;
  std::int64_t stride_, block_, sequence_;
  std::vector<std::int64_t> jumps_;
};

void set_reach(std::span<TokenPiece> pieces, std::int64_t stride, bool sorted) {
  if (!sorted)
    std::sort(pieces.begin(), pieces.end(),
              [](const TokenPiece& a, const TokenPiece& b) { return a.first < b.first; });
  std::int64_t reach = 0;
  for (TokenPiece& p : pieces) p.reach = reach = std::max(reach, p.last(stride));
}

}  // namespace

struct ShardedDocuments::Cut {
  TokenPiece piece;
  std::size_t document;
  int rank;
};

ShardedDocuments::ShardedDocuments(const PlanRequest& request, int only_rank)
    : stride_(request.layout.stride()),
      has_positions_(!request.positions.empty()),
      num_local_heads_(request.local_kv_heads.empty()
                           ? request.num_kv_heads
                           : static_cast<std::int64_t>(request.local_kv_heads.size())) {
  FARSPAN_CHECK(static_cast<std::int64_t>(request.segments.size()) == request.layout.num_tokens(),
                "{} segments for {} tokens", request.segments.size(), request.layout.num_tokens());
  FARSPAN_CHECK(stride_ % request.pattern.row_stride() == 0,
                "rows step by {} tokens, and the pattern needs a multiple of {}", stride_,
                request.pattern.row_stride());
  find_documents(request.segments);
  cut_runs(request, only_rank);
  make_tiles(request);
}

void ShardedDocuments::find_documents(std::span<const std::int32_t> segments) {
  const std::size_t n = segments.size();
  std::size_t borders = 0;
  for (std::size_t i = 1; i < n; ++i) borders += segments[i] != segments[i - 1] ? 1 : 0;
  documents_.reserve(borders + 1);
  for (std::size_t begin = 0; begin < n;) {
    const std::int32_t segment = segments[begin];
    std::size_t end = begin + 1;
    // Eight at a time: only this loop and the count above go over tokens.
    const auto differs = [&](std::size_t i) {
      int any = 0;
      for (std::size_t k = 0; k < 8; ++k) any |= segments[i + k] ^ segment;
      return any != 0;
    };
    while (end + 8 <= n && !differs(end)) end += 8;
    while (end < n && segments[end] == segment) ++end;
    documents_.push_back(
        {.begin = static_cast<std::int64_t>(begin), .end = static_cast<std::int64_t>(end)});
    begin = end;
  }
}

void ShardedDocuments::cut_runs(const PlanRequest& request, int only_rank) {
  const Borders borders(request, stride_);
  std::vector<Cut> cuts;
  cuts.reserve(documents_.size());
  for (int rank = 0; rank < request.layout.num_ranks(); ++rank) {
    const bool mine = only_rank < 0 || rank == only_rank;
    const std::size_t first_cut = cuts.size();
    std::int64_t row = 0;
    const auto add = [&](std::size_t document, std::int64_t first, std::int64_t count) {
      if (cuts.size() > first_cut && cuts.back().document == document) {
        TokenPiece& before = cuts.back().piece;  // runs that continue one another are one piece
        if (before.first + before.count * stride_ == first && borders.joins(first)) {
          const std::int64_t n = borders.together(first, count);
          before.count += n;
          row += n, first += n * stride_, count -= n;
        }
      }
      while (count > 0) {
        const std::int64_t n = borders.together(first, count);
        cuts.push_back({{first, n, row, borders.position(first), 0}, document, rank});
        row += n, first += n * stride_, count -= n;
      }
    };
    for (const IndexRange& run : request.layout.ranges(rank)) {
      borders.check_run(run);
      auto document = std::upper_bound(
          documents_.begin(), documents_.end(), run.begin,
          [](std::int64_t index, const ShardedDocument& d) { return index < d.end; });
      for (std::int64_t first = run.begin; first < run.end; ++document) {
        const std::int64_t end = std::min(run.end, document->end);
        if (end <= first) continue;  // a stride over a whole document
        const std::int64_t count = (end - first + stride_ - 1) / stride_;
        if (!mine && run.stride == 1 && first == document->begin && end == document->end) {
          row += count, first = end;
          continue;
        }
        add(static_cast<std::size_t>(document - documents_.begin()), first, count);
        first += count * stride_;
      }
    }
  }
  group(cuts, request.layout.num_ranks());
}

// Counting sort by document: pieces come by rank, and stay so.
void ShardedDocuments::group(const std::vector<Cut>& cuts, int num_ranks) {
  std::vector<std::size_t> next(documents_.size() + 1, 0);
  for (const Cut& c : cuts) ++next[c.document + 1];
  for (std::size_t d = 0; d < documents_.size(); ++d) next[d + 1] += next[d];
  std::vector<std::uint32_t> order(cuts.size());
  FARSPAN_CHECK(cuts.size() <= std::numeric_limits<std::uint32_t>::max(), "{} pieces", cuts.size());
  for (std::size_t i = 0; i < cuts.size(); ++i)
    order[next[cuts[i].document]++] = static_cast<std::uint32_t>(i);

  pieces_.resize(cuts.size());
  rank_shares_.resize(at(num_ranks));
  std::size_t i = 0;
  for (std::size_t d = 0; d < documents_.size(); ++d) {
    documents_[d].share_begin = shares_.size();
    while (i < cuts.size() && cuts[order[i]].document == d) {
      const int rank = cuts[order[i]].rank;
      const std::size_t begin = i;
      for (; i < cuts.size() && cuts[order[i]].document == d && cuts[order[i]].rank == rank; ++i)
        pieces_[i] = cuts[order[i]].piece;
      const auto pieces = std::span(pieces_).subspan(begin, i - begin);
      set_reach(pieces, stride_, false);
      rank_shares_[at(rank)].push_back(shares_.size());
      shares_.push_back({rank, d, begin, i});
    }
    documents_[d].share_end = shares_.size();
  }
}

// Documents of one length have the same tiles.
void ShardedDocuments::make_tiles(const PlanRequest& request) {
  const std::int64_t heads = request.num_kv_heads;
  const auto mine = request.local_kv_heads;
  FARSPAN_CHECK(heads >= 1 && std::is_sorted(mine.begin(), mine.end()) &&
                    (mine.empty() || (mine.front() >= 0 && mine.back() < heads)),
                "local KV heads must ascend in [0, {})", heads);
  const auto below = [&](std::int32_t head) -> std::int32_t {
    const auto h = static_cast<std::int32_t>(std::min<std::int64_t>(head, heads));
    if (mine.empty()) return h;
    return static_cast<std::int32_t>(std::lower_bound(mine.begin(), mine.end(), h) - mine.begin());
  };
  std::unordered_map<std::int64_t, std::pair<std::size_t, std::size_t>> of_length;
  for (ShardedDocument& d : documents_) {
    if (d.share_begin == d.share_end) continue;
    const auto [known, fresh] = of_length.try_emplace(d.length(), tiles_.size(), 0);
    if (fresh) {
      for (const MaskTile& mask : mask_tiles(request.pattern, d.length(), heads)) {
        HeadRange local{below(mask.kv_heads.begin), below(mask.kv_heads.end)};
        const std::int64_t count = local.end - local.begin;
        if (count == 0) continue;
        if (count == num_local_heads_) local = {};
        tiles_.push_back({mask, local, count});
      }
      known->second.second = tiles_.size();
    }
    d.tile_begin = known->second.first;
    d.tile_end = known->second.second;
  }
}

void ShardedDocuments::collect(const DocumentShare& share, const IndexRange& range,
                               const MaskTile& mask, std::vector<TokenPiece>& out) const {
  const ShardedDocument& document = documents_[share.document];
  const auto all =
      std::span(pieces_).subspan(share.piece_begin, share.piece_end - share.piece_begin);
  if (mask.step == 1 && range.begin == 0 && range.end == document.length()) {
    out.insert(out.end(), all.begin(), all.end());
    return;
  }
  const std::int64_t begin = document.begin + range.begin, end = document.begin + range.end;
  const std::int64_t s = stride_;
  const std::size_t first_out = out.size();
  bool sorted = true;
  for (TokenPiece p : pieces_between(all, begin, end - 1)) {
    if (mask.step > 1 && (p.first - document.begin) % mask.step != mask.residue) continue;
    const std::int64_t skipped = p.first < begin ? (begin - p.first + s - 1) / s : 0;
    const std::int64_t kept = (std::min(end, p.last(s) + 1) - p.first + s - 1) / s;
    if (kept <= skipped) continue;
    p.first += skipped * s;
    p.row += skipped;
    p.position += skipped * s;
    p.count = kept - skipped;
    sorted &= out.size() == first_out || out.back().first < p.first;
    out.push_back(p);
  }
  set_reach(std::span(out).subspan(first_out), s, sorted);
}

std::span<const TokenPiece> pieces_between(std::span<const TokenPiece> pieces, std::int64_t low,
                                           std::int64_t high) {
  const auto begin = std::partition_point(pieces.begin(), pieces.end(),
                                          [&](const TokenPiece& p) { return p.reach < low; });
  const auto end = std::partition_point(begin, pieces.end(),
                                        [&](const TokenPiece& p) { return p.first <= high; });
  return {begin, end};
}

}  // namespace farspan
