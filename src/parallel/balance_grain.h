// Which items a pass of the balanced layout cuts and which it would rather place whole.
#pragma once

#include <vector>

#include "parallel/balance_items.h"

namespace farspan::balance {

struct Grain {
  static constexpr int kLightOrders = 4;

  std::vector<bool> whole;     // [item] placed whole where it fits, weighed by its mean density
  std::vector<int> light;      // [item] cells [0, light) count as light, the others as dense
  std::vector<int> documents;  // cut, with a dense tail; longest first
  std::vector<int> dense;      // whole and dense, as they come
  std::vector<int> lights[kLightOrders];  // light to the end: as they come; lightest first, by
                                          // powers of two; that reversed; by powers of eight
};

// Items below both limits (in units of a place's mean) are placed whole.
Grain make_grain(const Problem& problem, double token_limit, double area_limit);

}  // namespace farspan::balance
