// Which pieces meet which blocks of rows and keys, and in which order the blocks are computed.
//
//   ForwardSchedule forward;
//   forward.build(pieces, num_q, rows_per_block);
//   for (Index b : forward.order()) run(b, forward.pieces_of(b));       // any order, any thread
//
//   BackwardSchedule backward;
//   backward.build(pieces, num_q, num_k, block, group);
//   for (const auto& item : backward.items()) ...    // wait for the item's two turns, then run
//
// Both are pure functions of their arguments, never of the number of threads. Their memory is kept
// from call to call.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/args.h"
#include "kernels/cpu/attention/kernel_table.h"

namespace farspan::cpu {

// Appends the canonical form of each slice that shows anything. CHECKs that slices lie within
// num_q x num_k and begin at one of the heads.
void append_pieces(std::span<const AttentionSlice> slices, Index num_q, Index num_k,
                   Index num_kv_heads, std::vector<Piece>& pieces);

// Pieces of each block of rows, of all heads, in the order given, and the blocks by falling work,
// so that the last tasks to start are short ones.
class ForwardSchedule {
 public:
  void build(std::span<const Piece> pieces, Index num_q, Index rows_per_block);

  std::span<const std::int32_t> order() const { return order_; }
  std::span<const std::int32_t> pieces_of(Index block) const {
    const auto b = static_cast<std::size_t>(block);
    return {ids_.data() + first_[b], static_cast<std::size_t>(first_[b + 1] - first_[b])};
  }

 private:
  std::vector<std::int32_t> first_, ids_, order_, next_;
  std::vector<double> work_;
};

// Backward adds to dq of a block of rows and to dk and dv of a block of keys. Cells (row block, key
// block) are taken diagonal by diagonal, the heads of a group starting on different diagonals: the
// cells of a diagonal share nothing, so Hkv * Tk / block threads work at once, while each dq, dk
// and dv still grows in one fixed order. An item waits until `row_turn` items of its rows and
// `key_turn` items of its keys have finished. Taken in order, some item can always run.
class BackwardSchedule {
 public:
  struct Cell {
    std::int32_t row_block, key_block;
    std::int32_t first, count;  // its pieces
  };
  struct Item {
    std::int32_t cell, head;          // head: within its group
    std::int32_t row_turn, key_turn;  // items before it on (head, row block) and on key block
  };

  // group: query heads per KV head.
  void build(std::span<const Piece> pieces, Index num_q, Index num_k, Index block, Index group);

  std::span<const Item> items() const { return items_; }
  const Cell& cell(const Item& item) const { return cells_[static_cast<std::size_t>(item.cell)]; }
  std::span<const std::int32_t> pieces_of(const Cell& cell) const {
    return {ids_.data() + cell.first, static_cast<std::size_t>(cell.count)};
  }
  Index num_row_blocks() const { return num_row_blocks_; }
  Index num_key_blocks() const { return num_key_blocks_; }

 private:
  struct Entry {
    std::int32_t row_block, key_block, piece;
  };
  void find_cells(std::span<const Piece> pieces, Index block);

  Index num_row_blocks_ = 0, num_key_blocks_ = 0;
  std::vector<Entry> entries_;
  std::vector<Cell> cells_;
  std::vector<std::int32_t> ids_, row_turns_, key_turns_;
  std::vector<Item> items_;
};

}  // namespace farspan::cpu
