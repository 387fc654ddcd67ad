#include "parallel/tile_overlap.h"

namespace farspan {

AttentionSlice slice_of(const TileOverlap& o, const TokenPiece& query, const TokenPiece& key,
                        double& visible) {
  AttentionSlice s;
  s.q_begin = query.row + o.q_begin;
  s.q_len = o.q_end - o.q_begin;
  s.k_begin = key.row + o.k_begin;
  s.k_len = o.k_end - o.k_begin;
  s.diagonal = o.diagonal + o.q_begin - o.k_begin;
  // Distances run from that of the first query and last key to that of the last and the first.
  const std::int64_t below = std::max<std::int64_t>(0, o.low - (s.diagonal - (s.k_len - 1)));
  const std::int64_t above = std::max<std::int64_t>(0, s.diagonal + s.q_len - 1 - o.high);
  // The hidden corners are triangles: every row and column still shows something, so neither
  // reaches past the rectangle.
  const auto corner = [](std::int64_t n) {
    return static_cast<double>(n) * static_cast<double>(n + 1) / 2;
  };
  visible =
      static_cast<double>(s.q_len) * static_cast<double>(s.k_len) - corner(below) - corner(above);
  if (below > 0) {  // kernels count from distance 0
    s.kind = above > 0 ? MaskKind::kBand : MaskKind::kCausal;
    s.diagonal -= o.low;
    s.window = above > 0 ? o.high - o.low + 1 : 0;
  } else if (above > 0) {
    s.kind = MaskKind::kInverseCausal;
    s.window = o.high + 1;
  }
  return s;
}

}  // namespace farspan
