// The documents of a micro-batch as a layout scatters them: what the attention plan is made from.
//
//   ShardedDocuments docs(request);
//   for (const DocumentShare& s : docs.shares_of(docs.documents()[d])) ...  // ranks, ascending
//
// Everything here counts in pieces, never in tokens, but for one pass over the segments (and one
// over positions).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/attention_plan.h"

namespace farspan {

// Tokens first, first + stride, ... of one document that lie in consecutive rows of one rank, at
// positions that step alike.
struct TokenPiece {
  std::int64_t first = 0;  // index in the micro-batch
  std::int64_t count = 0;
  std::int64_t row = 0;       // local, of the first
  std::int64_t position = 0;  // of the first; without meaning unless has_positions()
  std::int64_t reach = 0;     // the largest index of this piece and those before it in its list

  std::int64_t last(std::int64_t stride) const { return first + (count - 1) * stride; }
};

// The pieces of one document on one rank, by index.
struct DocumentShare {
  int rank = 0;
  std::size_t document = 0;
  std::size_t piece_begin = 0, piece_end = 0;
};

// A tile for the KV heads of this rank only.
struct PlanTile {
  MaskTile mask;
  HeadRange local;             // as heads of this rank
  std::int64_t num_heads = 0;  // of them, at least 1
};

struct ShardedDocument {
  std::int64_t begin = 0, end = 0;  // indices in the micro-batch
  std::size_t share_begin = 0, share_end = 0;
  std::size_t tile_begin = 0, tile_end = 0;
  std::int64_t length() const { return end - begin; }
};

class ShardedDocuments {
 public:
  // With `only_rank` >= 0, what lies whole on one other rank is left out: that rank's plan alone
  // can be made of the rest. (Most of a million tiny documents are such.)
  explicit ShardedDocuments(const PlanRequest& request, int only_rank = -1);

  std::int64_t stride() const { return stride_; }
  bool has_positions() const { return has_positions_; }
  std::int64_t num_local_heads() const { return num_local_heads_; }
  std::span<const ShardedDocument> documents() const { return documents_; }
  std::span<const PlanTile> tiles_of(const ShardedDocument& d) const {
    return std::span(tiles_).subspan(d.tile_begin, d.tile_end - d.tile_begin);
  }
  // Of a document, ranks ascending.
  std::span<const DocumentShare> shares_of(const ShardedDocument& d) const {
    return std::span(shares_).subspan(d.share_begin, d.share_end - d.share_begin);
  }
  // Of a rank, documents ascending: indices for share().
  std::span<const std::size_t> shares_of_rank(int rank) const {
    return rank_shares_[static_cast<std::size_t>(rank)];
  }
  const DocumentShare& share(std::size_t i) const { return shares_[i]; }

  // Appends what `share` holds of a tile's queries or keys (`range`, inside the document): pieces
  // cut down to them.
  void collect(const DocumentShare& share, const IndexRange& range, const MaskTile& mask,
               std::vector<TokenPiece>& out) const;

 private:
  struct Cut;  // a piece, its document and its rank
  void find_documents(std::span<const std::int32_t> segments);
  void cut_runs(const PlanRequest& request, int only_rank);
  void group(const std::vector<Cut>& cuts, int num_ranks);
  void make_tiles(const PlanRequest& request);

  std::int64_t stride_;
  bool has_positions_;
  std::int64_t num_local_heads_;
  std::vector<ShardedDocument> documents_;
  std::vector<DocumentShare> shares_;
  std::vector<std::vector<std::size_t>> rank_shares_;
  std::vector<TokenPiece> pieces_;
  std::vector<PlanTile> tiles_;
};

// Where in `pieces` (by index, with `reach`) there can be indices in [low, high].
std::span<const TokenPiece> pieces_between(std::span<const TokenPiece> pieces, std::int64_t low,
                                           std::int64_t high);

}  // namespace farspan
