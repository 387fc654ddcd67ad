// What the balanced layout moves about: documents cut into cells, and runs of short documents.
// Tokens and area are in units of a place's mean share, so that 1 is a place filled.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/balance.h"

namespace farspan::balance {

// The mean over layers of visible keys, in closed form for plain causal attention.
class MeanArea {
 public:
  explicit MeanArea(const BalanceRequest& request);
  double of_rows(std::int64_t begin, std::int64_t end, std::int64_t length) const;
  double of_document(std::int64_t length);  // remembers short lengths
  const std::vector<double>& weights() const { return weights_; }

 private:
  std::vector<RowArea> areas_;
  std::vector<double> weights_;  // sum 1
  bool triangle_ = false;        // all areas are plain causal
  std::vector<double> short_;    // of_document by length; negative: not known yet
};

// A run of the global index that is cut only at multiples of `grid` from its start: a document, or
// (one cell) some short documents that follow each other.
struct Item {
  std::int64_t begin = 0, tokens = 0;
  std::int64_t grid = 1;  // tokens of a cell; the last cell may be shorter
  int cells = 0;
  int light = 0;       // cells [0, light) have less area per token than the mean, the rest more
  int first_area = 0;  // of its cells + 1 entries in Problem::area_before
  double share = 0;    // of tokens
  double area = 0;
};

// Cells [lo, hi) of an item at a place.
struct Piece {
  int item = 0, lo = 0, hi = 0, place = 0;
};

struct Problem {
  int places = 1;
  std::int64_t tokens = 0;      // S
  double tokens_per_place = 0;  // S / P
  std::vector<Item> items;      // ascending in the global index
  std::vector<double> area_before;
  double largest_cell_tokens = 0, largest_cell_area = 0;
  std::vector<std::int64_t> reach;  // per distinct reach of the layers,
  std::vector<double> weight;       // its share of the layers
  double bidirectional = 0;         // share of the layers that are not causal

  double tokens_to(const Item& item, int cell) const {  // of cells [0, cell)
    const std::int64_t rows = rows_to(item, cell);
    return static_cast<double>(rows) / tokens_per_place;
  }
  static std::int64_t rows_to(const Item& item, int cell) {
    const std::int64_t rows = cell * item.grid;
    return rows < item.tokens ? rows : item.tokens;
  }
  double area_to(const Item& item, int cell) const {
    return area_before[static_cast<std::size_t>(item.first_area + cell)];
  }
  // Area per token of the cell before `cell`, in units of the mean.
  double density(const Item& item, int cell) const {
    return (area_to(item, cell) - area_to(item, cell - 1)) /
           (tokens_to(item, cell) - tokens_to(item, cell - 1));
  }
  // Rows that cross a border between neighbours on the ring which cuts an item after `cell` cells.
  double crossing(const Item& item, int cell) const;
};

Problem make_problem(const BalanceRequest& request);

// Rows x hops of an item's pieces, which ascend. (Sinks are not counted.)
double traffic(const Problem& problem, const std::vector<Piece>& pieces);

}  // namespace farspan::balance
