#include "parallel/kv_cache.h"

#include <algorithm>
#include <optional>

#include "parallel/attention_parts.h"
#include "parallel/tile_overlap.h"

namespace farspan {
namespace {

// The part of a piece that lies in a tile's range of tokens.
std::optional<TokenPiece> within(TokenPiece p, const IndexRange& range, const MaskTile& mask,
                                 std::int64_t stride) {
  if (mask.step > 1 && p.first % mask.step != mask.residue) return std::nullopt;
  const std::int64_t skipped =
      p.first < range.begin ? (range.begin - p.first + stride - 1) / stride : 0;
  const std::int64_t end = std::min(range.end, p.last(stride) + 1);
  const std::int64_t kept = end > p.first ? (end - p.first + stride - 1) / stride : 0;
  if (kept <= skipped) return std::nullopt;
  p.first += skipped * stride;
  p.position += skipped * stride;
  p.row += skipped;
  p.count = kept - skipped;
  return p;
}

std::vector<TokenPiece> within(std::span<const TokenPiece> pieces, const IndexRange& range,
                               const MaskTile& mask, std::int64_t stride) {
  std::vector<TokenPiece> out;
  for (const TokenPiece& piece : pieces)
    if (const auto part = within(piece, range, mask, stride)) out.push_back(*part);
  return out;
}

}  // namespace

KvCache::KvCache(Arena& arena, const Sizes& sizes) : capacity_(sizes.capacity) {
  const Shape shape{sizes.capacity, sizes.num_kv_heads, sizes.head_dim};
  for (std::int64_t layer = 0; layer < sizes.num_layers; ++layer) {
    keys_.push_back(arena.take(sizes.dtype, shape, "cache.keys"));
    values_.push_back(arena.take(sizes.dtype, shape, "cache.values"));
  }
}

void KvCache::extend(std::vector<TokenPiece> pieces, std::int64_t stride) {
  new_rows_ = 0;
  for (TokenPiece& piece : pieces) {
    piece.row = rows_;
    rows_ += piece.count;
    new_rows_ += piece.count;
    if (!pieces_.empty() && pieces_.back().first + pieces_.back().count * stride == piece.first)
      pieces_.back().count += piece.count;
    else
      pieces_.push_back(piece);
  }
  FARSPAN_CHECK(rows_ <= capacity_, "{} tokens in a cache for {}", rows_, capacity_);
}

void KvCache::keep_last(std::int64_t count, const StepContext& ctx) {
  const std::int64_t forgotten = rows_ - count;
  if (forgotten <= 0) return;
  FARSPAN_CHECK(pieces_.size() == 1, "{} runs of tokens", pieces_.size());
  for (const std::vector<Tensor>* tensors : {&keys_, &values_})
    for (const Tensor& t : *tensors)
      for (std::int64_t row = 0; row < count; row += forgotten) {  // parts that do not overlap
        const std::int64_t n = std::min(forgotten, count - row);
        ctx.kernels().copy({.src = t.rows(row + forgotten, n), .dst = t.rows(row, n)},
                           ctx.stream());
      }
  pieces_.front().first += forgotten;
  pieces_.front().position += forgotten;
  pieces_.front().count = count;
  rows_ = count;
  new_rows_ = 0;
}

void KvCache::put(int layer, Tensor k, Tensor v, const std::vector<IndexRange>& rows,
                  const StepContext& ctx) {
  const auto i = static_cast<std::size_t>(layer);
  pack_rows(ctx, k, rows, keys_[i].rows(rows_ - new_rows_, new_rows_));
  pack_rows(ctx, v, rows, values_[i].rows(rows_ - new_rows_, new_rows_));
}

std::vector<std::int32_t> token_order(std::int64_t begin, std::int64_t end, std::int64_t stride) {
  std::vector<std::int32_t> order;
  for (std::int64_t residue = 0; residue < stride; ++residue) {
    const std::int64_t first = begin + (residue - begin % stride + stride) % stride;
    for (std::int64_t t = first; t < end; t += stride) order.push_back(static_cast<int>(t));
  }
  return order;
}

std::vector<TokenPiece> pieces_of(std::span<const std::int32_t> tokens, std::int64_t stride) {
  std::vector<TokenPiece> pieces;
  for (std::size_t row = 0; row < tokens.size(); ++row) {
    const std::int64_t token = tokens[row];
    if (!pieces.empty() && pieces.back().first + pieces.back().count * stride == token)
      ++pieces.back().count;
    else
      pieces.push_back(
          {.first = token, .count = 1, .row = static_cast<std::int64_t>(row), .position = token});
  }
  return pieces;
}

std::vector<AttentionSlice> slices_of_tile(const MaskTile& tile,
                                           std::span<const TokenPiece> queries,
                                           std::span<const TokenPiece> keys, std::int64_t stride,
                                           double& pairs) {
  std::vector<AttentionSlice> slices;
  const std::vector<TokenPiece> seen_from = within(queries, tile.q, tile, stride);
  if (seen_from.empty()) return slices;
  for (const TokenPiece& key : within(keys, tile.k, tile, stride))
    for (const TokenPiece& query : seen_from) {
      const TileOverlap overlap = tile_overlap(query, key, tile, stride);
      if (overlap.empty() || overlap.q_begin >= overlap.q_end) continue;
      double visible = 0;
      AttentionSlice slice = slice_of(overlap, query, key, visible);
      slice.kv_heads = tile.kv_heads;
      slice.position_diagonal =
          query.position - key.position + (overlap.q_begin - overlap.k_begin) * stride;
      slices.push_back(slice);
      pairs += visible;
    }
  return slices;
}

AttentionPlan plan_over_cache(const CachePlanRequest& request) {
  AttentionPlan plan;
  AttentionPlan::Hop hop;
  for (const TokenPiece& q : request.queries) plan.local_rows += q.count;
  for (const TokenPiece& k : request.keys) hop.kv_rows += k.count;
  plan.max_rows = std::max(plan.local_rows, hop.kv_rows);
  plan.position_stride = request.stride;
  std::vector<TokenPiece> sorted(request.keys.begin(), request.keys.end());
  std::sort(sorted.begin(), sorted.end(),
            [](const TokenPiece& a, const TokenPiece& b) { return a.first < b.first; });
  for (const MaskTile& tile : mask_tiles(request.pattern, request.length, request.num_kv_heads)) {
    const std::int64_t heads =
        std::min<std::int64_t>(tile.kv_heads.end, request.num_kv_heads) - tile.kv_heads.begin;
    double pairs = 0;
    for (const AttentionSlice& slice :
         slices_of_tile(tile, request.queries, sorted, request.stride, pairs))
      hop.slices.push_back(slice);
    hop.visible_pairs +=
        pairs * static_cast<double>(heads) / static_cast<double>(request.num_kv_heads);
  }
  plan.visible_pairs = hop.visible_pairs;
  plan.hops.push_back(std::move(hop));
  return plan;
}

}  // namespace farspan
