// Runs of tokens that are computed one after the other, so that what is as wide as an MLP or a
// vocabulary never exists for all tokens at once. Sums over tokens are taken tile by tile,
// ascending: bitwise repeatable, and the same for every recompute policy.
//
//   const TokenTiles tiles = TokenTiles::even(num_tokens, ctx);
//   Tensor gate = ctx.scratch.take(dtype, {tiles.largest(), ffn}, "gate");
//   for (const auto& [begin, count] : tiles) ... gate.rows(0, count) ... x.rows(begin, count)
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/step_context.h"

namespace farspan {

struct TokenTile {
  std::int64_t begin = 0, count = 0;
};

class TokenTiles {
 public:
  // As few tiles as ctx.token_tile allows, about equally long. In invariant mode, where there is
  // more than one, a tile is one of ctx.row_blocks.
  static TokenTiles even(std::int64_t num_tokens, const StepContext& ctx);
  // Tiles of `rows` tokens, the last one shorter. In invariant mode a tile is one of
  // ctx.row_blocks.
  static TokenTiles of(std::int64_t rows, std::int64_t num_tokens, const StepContext& ctx);

  std::int64_t largest() const;  // at least 1
  std::vector<TokenTile>::const_iterator begin() const { return tiles_.begin(); }
  std::vector<TokenTile>::const_iterator end() const { return tiles_.end(); }

 private:
  std::vector<TokenTile> tiles_;
};

}  // namespace farspan
