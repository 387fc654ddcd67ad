#include "parallel/balance_grain.h"

#include <algorithm>
#include <cmath>

namespace farspan::balance {
namespace {

// Within a class items stay as they come: neighbours at one place are one run.
std::vector<int> by_density_class(const Problem& problem, std::vector<int> items, int powers) {
  const auto density_class = [&](int i) {
    const Item& item = problem.items[static_cast<std::size_t>(i)];
    return std::ilogb(item.area / item.share) / powers;
  };
  std::stable_sort(items.begin(), items.end(),
                   [&](int a, int b) { return density_class(a) < density_class(b); });
  return items;
}

}  // namespace

Grain make_grain(const Problem& problem, double token_limit, double area_limit) {
  Grain grain;
  for (int i = 0; i < static_cast<int>(problem.items.size()); ++i) {
    const Item& item = problem.items[static_cast<std::size_t>(i)];
    const bool whole = item.cells == 1 || (item.share < token_limit && item.area < area_limit);
    int light = item.light;
    if (whole) light = item.area < item.share ? item.cells : 0;
    grain.whole.push_back(whole);
    grain.light.push_back(light);
    if (light == item.cells)
      grain.lights[0].push_back(i);
    else
      (whole ? grain.dense : grain.documents).push_back(i);
  }
  std::stable_sort(grain.documents.begin(), grain.documents.end(), [&](int a, int b) {
    return problem.items[static_cast<std::size_t>(a)].tokens >
           problem.items[static_cast<std::size_t>(b)].tokens;
  });
  grain.lights[1] = by_density_class(problem, grain.lights[0], 1);
  grain.lights[2].assign(grain.lights[1].rbegin(), grain.lights[1].rend());
  grain.lights[3] = by_density_class(problem, grain.lights[0], 3);
  return grain;
}

}  // namespace farspan::balance
