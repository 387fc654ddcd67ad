#include "model/token_tiles.h"

#include <algorithm>

namespace farspan {

TokenTiles TokenTiles::of(std::int64_t rows, std::int64_t num_tokens, const StepContext& ctx) {
  FARSPAN_CHECK(rows > 0, "tiles of {} tokens", rows);
  TokenTiles out;
  for (std::size_t i = 0; i + 1 < ctx.row_blocks.size(); ++i)
    if (ctx.row_blocks[i] < ctx.row_blocks[i + 1])
      out.tiles_.push_back({ctx.row_blocks[i], ctx.row_blocks[i + 1] - ctx.row_blocks[i]});
  if (!ctx.row_blocks.empty()) return out;
  for (std::int64_t t = 0; t < num_tokens; t += rows)
    out.tiles_.push_back({t, std::min(rows, num_tokens - t)});
  return out;
}

TokenTiles TokenTiles::even(std::int64_t num_tokens, const StepContext& ctx) {
  constexpr std::int64_t kMultiple = 128;  // what matrix kernels like
  TokenTiles out;
  if (num_tokens <= ctx.token_tile) {
    if (num_tokens > 0) out.tiles_.push_back({0, num_tokens});
    return out;
  }
  const std::int64_t num_tiles = (num_tokens + ctx.token_tile - 1) / ctx.token_tile;
  const std::int64_t share = (num_tokens + num_tiles - 1) / num_tiles;
  const std::int64_t rounded = (share + kMultiple - 1) / kMultiple * kMultiple;
  return of(std::min(rounded, ctx.token_tile), num_tokens, ctx);
}

std::int64_t TokenTiles::largest() const {
  std::int64_t most = 1;
  for (const TokenTile& tile : tiles_) most = std::max(most, tile.count);
  return most;
}

}  // namespace farspan
