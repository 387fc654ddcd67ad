#include "app/score_map.h"

#include <algorithm>

namespace farspan::app {
namespace {

// Tokens [border(c), border(c + 1)) of the sequence are cell c.
class Cells {
 public:
  Cells(std::int64_t tokens, int size) : tokens_(tokens), size_(size) {}
  std::int64_t border(std::int64_t cell) const { return tokens_ * cell / size_; }
  int of(std::int64_t token) const {
    auto cell = static_cast<int>(token * size_ / tokens_);
    while (cell + 1 < size_ && border(cell + 1) <= token) ++cell;
    while (border(cell) > token) --cell;
    return cell;
  }

 private:
  std::int64_t tokens_;
  int size_;
};

// The place that holds most of each cell's tokens, or kSeveral where none holds half of them.
std::vector<int> places_of(const AttentionCase& c, const Cells& cells, std::int64_t tokens,
                           int size) {
  const SequenceLayout layout = attention_layout(c);
  const auto places = static_cast<std::size_t>(layout.num_ranks());
  std::vector<std::int64_t> held(static_cast<std::size_t>(size) * places);
  for (int r = 0; r < layout.num_ranks(); ++r)
    for (const IndexRange& range : layout.ranges(r))
      for (std::int64_t i = range.begin; i < std::min(range.end, tokens); i += range.stride)
        ++held[static_cast<std::size_t>(cells.of(i)) * places + static_cast<std::size_t>(r)];
  std::vector<int> out;
  for (int cell = 0; cell < size; ++cell) {
    const auto first =
        held.begin() + static_cast<std::ptrdiff_t>(cell) * static_cast<std::ptrdiff_t>(places);
    const auto most = std::max_element(first, first + static_cast<std::ptrdiff_t>(places));
    const bool clear = 2 * *most >= cells.border(cell + 1) - cells.border(cell);
    out.push_back(clear ? static_cast<int>(most - first) : ScoreMap::kSeveral);
  }
  return out;
}

// Marks the cells in which the tile, of a document that starts at `origin`, shows anything.
void mark(const MaskTile& tile, std::int64_t origin, const Cells& cells, int size,
          std::vector<bool>& visible) {
  const std::int64_t q_begin = origin + tile.q.begin, q_end = origin + tile.q.end;
  const std::int64_t k_begin = origin + tile.k.begin, k_end = origin + tile.k.end;
  if (q_begin >= q_end || k_begin >= k_end) return;
  for (int q = cells.of(q_begin); q <= cells.of(q_end - 1); ++q) {
    const std::int64_t q_low = std::max(q_begin, cells.border(q));
    const std::int64_t q_high = std::min(q_end, cells.border(q + 1)) - 1;
    for (int k = cells.of(k_begin); k <= cells.of(k_end - 1); ++k) {
      const std::int64_t k_low = std::max(k_begin, cells.border(k));
      const std::int64_t k_high = std::min(k_end, cells.border(k + 1)) - 1;
      if (q_high - k_low >= tile.min_distance && q_low - k_high <= tile.max_distance)
        visible[static_cast<std::size_t>(q) * static_cast<std::size_t>(size) +
                static_cast<std::size_t>(k)] = true;
    }
  }
}

}  // namespace

ScoreMap score_map(const AttentionCase& c, int most) {
  ScoreMap map;
  map.tokens = c.num_tokens() / c.sequences;
  map.size = static_cast<int>(std::min<std::int64_t>(most, map.tokens));
  const Cells cells(map.tokens, map.size);
  const auto area = static_cast<std::size_t>(map.size) * static_cast<std::size_t>(map.size);
  std::vector<bool> visible(area);
  std::int64_t origin = 0;
  for (std::size_t d = 0; d < c.documents.size() && origin < map.tokens; ++d) {
    for (const MaskTile& tile :
         mask_tiles(c.patterns.front(), c.documents[d], c.heads.num_kv_heads))
      mark(tile, origin, cells, map.size, visible);
    origin += c.documents[d];
  }
  const std::vector<int> places = places_of(c, cells, map.tokens, map.size);
  map.cells.resize(area);
  for (std::size_t i = 0; i < area; ++i) {
    if (!visible[i]) continue;
    const int q = places[i / static_cast<std::size_t>(map.size)];
    map.cells[i] = {.place = q, .own = q == places[i % static_cast<std::size_t>(map.size)]};
  }
  return map;
}

}  // namespace farspan::app
