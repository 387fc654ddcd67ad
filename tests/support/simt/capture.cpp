#include "support/simt/capture.h"

#include <algorithm>

namespace farspan::simt {

void run_graph(const GraphNodes& nodes, Disorder& disorder) {
  std::vector<std::vector<std::size_t>> before(nodes.size());  // whom each node lets go on
  std::vector<std::size_t> missing(nodes.size()), able;
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    missing[i] = nodes[i].after.size();
    for (const std::size_t j : nodes[i].after) before[j].push_back(i);
    if (missing[i] == 0) able.push_back(i);
  }
  while (!able.empty()) {
    std::swap(able[disorder.below(able.size())], able.back());
    const std::size_t i = able.back();
    able.pop_back();
    nodes[i].run();
    for (const std::size_t next : before[i])
      if (--missing[next] == 0) able.push_back(next);
  }
}

bool all_joined(const GraphNodes& nodes, const std::vector<std::size_t>& last) {
  std::vector<bool> seen(nodes.size());
  for (const std::size_t i : last) seen[i] = true;
  for (std::size_t i = nodes.size(); i-- > 0;) {
    if (!seen[i]) return false;
    for (const std::size_t j : nodes[i].after) seen[j] = true;
  }
  return true;
}

}  // namespace farspan::simt
