#include "parallel/kv_journeys.h"

#include <algorithm>
#include <queue>

#include "parallel/tile_overlap.h"

namespace farspan {
namespace {

// Of one tile, the queries of one rank.
struct User {
  int rank = 0;
  std::size_t begin = 0, end = 0;  // in Users::pieces
  std::int64_t last = 0;           // its last query
};

// Of one tile, all queries by rank.
class Users {
 public:
  Users(const ShardedDocuments& documents, std::int64_t stride)
      : documents_(&documents), stride_(stride) {}

  void gather(const ShardedDocument& document, const MaskTile& mask) {
    mask_ = &mask;
    // Without an upper bound on the distance, a rank's last query sees every key that others do.
    last_sees_all_ = mask.max_distance >= document.length();
    users_.clear();
    pieces_.clear();
    for (const DocumentShare& share : documents_->shares_of(document)) {
      const std::size_t begin = pieces_.size();
      documents_->collect(share, mask.q, mask, pieces_);
      if (pieces_.size() > begin)
        users_.push_back({share.rank, begin, pieces_.size(), pieces_.back().reach});
    }
  }

  std::span<const User> all() const { return users_; }

  // Calls use(k_begin, k_end) for the rows of `key` that `user` sees; the calls may overlap.
  template <typename Use>
  void rows_needed(const User& user, const TokenPiece& key, const Use& use) const {
    if (last_sees_all_) {
      const std::int64_t end = keys_before(user.last, key, *mask_, stride_);
      if (end > 0) use(std::int64_t{0}, end);
      return;
    }
    const auto mine = std::span(pieces_).subspan(user.begin, user.end - user.begin);
    for (const TokenPiece& query : pieces_between(mine, key.first + mask_->min_distance,
                                                  key.last(stride_) + mask_->max_distance)) {
      const TileOverlap o = tile_overlap(query, key, *mask_, stride_);
      if (!o.empty()) use(o.k_begin, o.k_end);
    }
  }

 private:
  const ShardedDocuments* documents_;
  std::int64_t stride_;
  const MaskTile* mask_ = nullptr;
  bool last_sees_all_ = false;
  std::vector<User> users_;
  std::vector<TokenPiece> pieces_;
};

// Appends the journeys of one key piece. Users are asked from the farthest on until no row is left
// that a nearer one could need; rows in the middle of the rest may be recorded more than once.
void record(const Users& users, int owner, int num_ranks, const TokenPiece& key,
            std::vector<KvJourney>& out) {
  const auto all = users.all();
  const auto own = static_cast<std::size_t>(
      std::partition_point(all.begin(), all.end(), [&](const User& u) { return u.rank < owner; }) -
      all.begin());
  std::int64_t begin = 0, end = key.count;  // what is left
  for (std::size_t n = 0; n < all.size() && begin < end; ++n) {
    const User& user = all[(own + all.size() - 1 - n) % all.size()];
    if (user.rank == owner) continue;
    const int distance = (user.rank - owner + num_ranks) % num_ranks;
    users.rows_needed(user, key, [&](std::int64_t k_begin, std::int64_t k_end) {
      if (k_end <= begin || k_begin >= end) return;
      out.push_back({key.row + k_begin, key.row + k_end, distance});
      if (k_begin <= begin)
        begin = k_end;
      else if (k_end >= end)
        end = k_begin;
    });
  }
}

// The farthest journey of each row.
std::vector<KvJourney> highest(std::vector<KvJourney> records) {
  std::sort(records.begin(), records.end(),
            [](const KvJourney& a, const KvJourney& b) { return a.begin < b.begin; });
  const auto nearer = [](const KvJourney& a, const KvJourney& b) {
    return a.farthest < b.farthest;
  };
  std::priority_queue<KvJourney, std::vector<KvJourney>, decltype(nearer)> open(nearer);
  std::vector<KvJourney> out;
  std::int64_t row = 0;
  for (std::size_t next = 0; next < records.size() || !open.empty();) {
    if (open.empty()) row = std::max(row, records[next].begin);
    while (next < records.size() && records[next].begin <= row) open.push(records[next++]);
    while (!open.empty() && open.top().end <= row) open.pop();
    if (open.empty()) continue;
    std::int64_t until = open.top().end;
    if (next < records.size()) until = std::min(until, records[next].begin);
    if (!out.empty() && out.back().end == row && out.back().farthest == open.top().farthest)
      out.back().end = until;
    else
      out.push_back({row, until, open.top().farthest});
    row = until;
  }
  return out;
}

}  // namespace

std::vector<std::vector<KvJourney>> kv_journeys(const ShardedDocuments& documents, int num_ranks) {
  std::vector<std::vector<KvJourney>> journeys(static_cast<std::size_t>(num_ranks));
  Users users(documents, documents.stride());
  std::vector<TokenPiece> keys;
  for (const ShardedDocument& document : documents.documents()) {
    const auto shares = documents.shares_of(document);
    if (shares.size() < 2) continue;  // nobody else has a query
    for (const PlanTile& tile : documents.tiles_of(document)) {
      users.gather(document, tile.mask);
      if (users.all().empty()) continue;
      for (const DocumentShare& share : shares) {
        keys.clear();
        documents.collect(share, tile.mask.k, tile.mask, keys);
        for (const TokenPiece& key : keys)
          record(users, share.rank, num_ranks, key, journeys[static_cast<std::size_t>(share.rank)]);
      }
    }
  }
  for (auto& of_owner : journeys) of_owner = highest(std::move(of_owner));
  return journeys;
}

std::vector<std::vector<IndexRange>> kv_needs(const ShardedDocuments& documents, int owner,
                                              int num_ranks) {
  std::vector<std::vector<IndexRange>> needs(static_cast<std::size_t>(num_ranks));
  Users users(documents, documents.stride());
  std::vector<TokenPiece> keys;
  for (const std::size_t i : documents.shares_of_rank(owner)) {
    const DocumentShare& share = documents.share(i);
    const ShardedDocument& document = documents.documents()[share.document];
    for (const PlanTile& tile : documents.tiles_of(document)) {
      keys.clear();
      documents.collect(share, tile.mask.k, tile.mask, keys);
      if (keys.empty()) continue;
      users.gather(document, tile.mask);
      for (const User& user : users.all())
        for (const TokenPiece& key : keys)
          users.rows_needed(user, key, [&](std::int64_t k_begin, std::int64_t k_end) {
            needs[static_cast<std::size_t>(user.rank)].push_back(
                {key.row + k_begin, key.row + k_end});
          });
    }
  }
  for (auto& of_rank : needs) normalize(of_rank);
  return needs;
}

void normalize(std::vector<IndexRange>& ranges) {
  const auto before = [](const IndexRange& a, const IndexRange& b) { return a.begin < b.begin; };
  if (!std::is_sorted(ranges.begin(), ranges.end(), before))
    std::sort(ranges.begin(), ranges.end(), before);
  std::size_t kept = 0;
  for (const IndexRange& r : ranges) {
    if (kept > 0 && ranges[kept - 1].end >= r.begin)
      ranges[kept - 1].end = std::max(ranges[kept - 1].end, r.end);
    else
      ranges[kept++] = r;
  }
  ranges.resize(kept);
}

}  // namespace farspan
