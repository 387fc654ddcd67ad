// What is left to do where a pass of the balanced layout ends above the caps: cells are moved from
// overfull places to others, at the least cost in traffic. Rare, but for very few tokens per place.
#pragma once

#include <vector>

#include "parallel/balance_items.h"

namespace farspan::balance {

// Moves parts of `pieces` until no place is above the limits or nothing helps. `pieces` come in any
// order and go out ordered by item and cell.
void repair(const Problem& problem, double area_limit, double token_limit,
            std::vector<Piece>& pieces);

}  // namespace farspan::balance
