#include "kernels/cpu/attention/schedule.h"

#include <algorithm>
#include <numeric>
#include <tuple>

#include "core/error.h"

namespace farspan::cpu {
namespace {

constexpr Index kUnbounded = Index{1} << 40;

Index ceil_div(Index n, Index unit) { return (n + unit - 1) / unit; }

// Keys of the piece that its rows [begin, end) see between them.
struct Range {
  Index begin, end;
  Index length() const { return std::max<Index>(0, end - begin); }
};
Range keys_of(const Piece& p, Index begin, Index end) {
  return {std::clamp<Index>(begin - p.max_distance, 0, p.k_len),
          std::clamp<Index>(end - p.min_distance, 0, p.k_len)};
}

// Rows of the piece inside block `b` of the call's rows, from the piece's first.
Range rows_of(const Piece& p, Index b, Index block) {
  return {std::max(b * block, p.q_begin) - p.q_begin,
          std::min((b + 1) * block, p.q_begin + p.q_len) - p.q_begin};
}

}  // namespace

void append_pieces(std::span<const AttentionSlice> slices, Index num_q, Index num_k,
                   Index num_kv_heads, std::vector<Piece>& pieces) {
  for (const AttentionSlice& s : slices) {
    FARSPAN_CHECK(s.q_begin >= 0 && s.q_len >= 0 && s.q_begin + s.q_len <= num_q,
                  "slice rows [{}, +{}) of {}", s.q_begin, s.q_len, num_q);
    FARSPAN_CHECK(s.k_begin >= 0 && s.k_len >= 0 && s.k_begin + s.k_len <= num_k,
                  "slice keys [{}, +{}) of {}", s.k_begin, s.k_len, num_k);
    const Index head_begin = s.kv_heads.begin;
    const Index head_end = std::min<Index>(s.kv_heads.end, num_kv_heads);
    FARSPAN_CHECK(head_begin >= 0 && head_begin <= head_end, "slice for KV heads [{}, {}) of {}",
                  s.kv_heads.begin, s.kv_heads.end, num_kv_heads);
    const bool causal = s.kind == MaskKind::kCausal || s.kind == MaskKind::kBand;
    const bool windowed = s.kind == MaskKind::kInverseCausal || s.kind == MaskKind::kBand;
    // delta = i - j + diagonal, so delta >= 0 is i - j >= -diagonal, and so on.
    const Index low = causal ? std::max(-s.diagonal, -kUnbounded) : -kUnbounded;
    const Index high = windowed ? std::min(s.window - 1 - s.diagonal, kUnbounded) : kUnbounded;
    const bool sees_nothing = s.q_len == 0 || s.k_len == 0 || head_begin == head_end ||
                              low > high || low > s.q_len - 1 || high < -(s.k_len - 1);
    if (!sees_nothing)
      pieces.push_back({s.q_begin, s.q_len, s.k_begin, s.k_len, low, high, head_begin, head_end,
                        s.position_diagonal});
  }
}

void ForwardSchedule::build(std::span<const Piece> pieces, Index num_q, Index rows_per_block) {
  const auto num_blocks = static_cast<std::size_t>(ceil_div(num_q, rows_per_block));
  first_.assign(num_blocks + 1, 0);
  work_.assign(num_blocks, 0.0);
  for (const Piece& p : pieces)
    for (Index b = p.q_begin / rows_per_block; b * rows_per_block < p.q_begin + p.q_len; ++b) {
      const Range rows = rows_of(p, b, rows_per_block);
      const Index ends = keys_of(p, rows.begin, rows.begin + 1).length() +
                         keys_of(p, rows.end - 1, rows.end).length();
      work_[static_cast<std::size_t>(b)] +=
          0.5 * static_cast<double>(rows.length() * ends * (p.head_end - p.head_begin));
      ++first_[static_cast<std::size_t>(b) + 1];
    }
  std::partial_sum(first_.begin(), first_.end(), first_.begin());
  ids_.resize(static_cast<std::size_t>(first_.back()));
  next_.assign(first_.begin(), first_.end() - 1);
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const Piece& p = pieces[i];
    for (Index b = p.q_begin / rows_per_block; b * rows_per_block < p.q_begin + p.q_len; ++b)
      ids_[static_cast<std::size_t>(next_[static_cast<std::size_t>(b)]++)] =
          static_cast<std::int32_t>(i);
  }
  order_.resize(num_blocks);
  std::iota(order_.begin(), order_.end(), 0);
  std::sort(order_.begin(), order_.end(), [this](std::int32_t a, std::int32_t b) {
    const double wa = work_[static_cast<std::size_t>(a)], wb = work_[static_cast<std::size_t>(b)];
    return wa != wb ? wa > wb : a < b;
  });
}

void BackwardSchedule::find_cells(std::span<const Piece> pieces, Index block) {
  entries_.clear();
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const Piece& p = pieces[i];
    for (Index b = p.q_begin / block; b * block < p.q_begin + p.q_len; ++b) {
      const Range rows = rows_of(p, b, block);
      const Range keys = keys_of(p, rows.begin, rows.end);
      if (keys.length() == 0) continue;
      for (Index k = (p.k_begin + keys.begin) / block; k * block < p.k_begin + keys.end; ++k)
        entries_.push_back({static_cast<std::int32_t>(b), static_cast<std::int32_t>(k),
                            static_cast<std::int32_t>(i)});
    }
  }
  std::sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) {
    return std::tie(a.row_block, a.key_block, a.piece) <
           std::tie(b.row_block, b.key_block, b.piece);
  });
  cells_.clear();
  ids_.clear();
  for (const Entry& e : entries_) {
    if (cells_.empty() || cells_.back().row_block != e.row_block ||
        cells_.back().key_block != e.key_block)
      cells_.push_back({e.row_block, e.key_block, static_cast<std::int32_t>(ids_.size()), 0});
    ids_.push_back(e.piece);
    ++cells_.back().count;
  }
}

void BackwardSchedule::build(std::span<const Piece> pieces, Index num_q, Index num_k, Index block,
                             Index group) {
  num_row_blocks_ = ceil_div(num_q, block);
  num_key_blocks_ = ceil_div(num_k, block);
  find_cells(pieces, block);
  items_.clear();
  for (std::size_t c = 0; c < cells_.size(); ++c)
    for (Index h = 0; h < group; ++h)
      items_.push_back({static_cast<std::int32_t>(c), static_cast<std::int32_t>(h), 0, 0});

  const Index num_diagonals = std::max(num_row_blocks_, num_key_blocks_);
  const auto diagonal = [&](const Item& item) {
    const Cell& c = cell(item);
    return (c.row_block - c.key_block + num_diagonals + item.head * num_diagonals / group) %
           num_diagonals;
  };
  std::sort(items_.begin(), items_.end(), [&](const Item& a, const Item& b) {
    return std::tuple(diagonal(a), a.head, a.cell) < std::tuple(diagonal(b), b.head, b.cell);
  });

  row_turns_.assign(static_cast<std::size_t>(group * num_row_blocks_), 0);
  key_turns_.assign(static_cast<std::size_t>(num_key_blocks_), 0);
  for (Item& item : items_) {
    const Cell& c = cell(item);
    item.row_turn =
        row_turns_[static_cast<std::size_t>(item.head * num_row_blocks_ + c.row_block)]++;
    item.key_turn = key_turns_[static_cast<std::size_t>(c.key_block)]++;
  }
}

}  // namespace farspan::cpu
