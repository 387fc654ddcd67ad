// The score matrix of a sequence, seen from far enough that it fits a picture: which cells hold
// anything visible, and whose work they are.
#pragma once

#include <vector>

#include "parallel/attention_cost.h"

namespace farspan::app {

struct ScoreMap {
  static constexpr int kNobody = -1;   // of a cell: nothing visible
  static constexpr int kSeveral = -2;  // its rows are spread over several places of the ring
  struct Cell {
    int place = kNobody;  // of the ring, that computes the cell
    bool own = false;     // its keys lie there too
  };
  int size = 0;             // cells along each side
  std::int64_t tokens = 0;  // of the sequence
  std::vector<Cell> cells;  // size x size, queries down, keys across
  const Cell& at(int q, int k) const {
    return cells[static_cast<std::size_t>(q) * static_cast<std::size_t>(size) +
                 static_cast<std::size_t>(k)];
  }
};

// Of the first sequence and the first pattern; at most `most` cells along a side.
ScoreMap score_map(const AttentionCase& problem, int most);

}  // namespace farspan::app
