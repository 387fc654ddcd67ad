// CUDA graphs: work that streams were given while they recorded, to be run again and again in any
// order that the recorded dependencies leave.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "support/simt/random.h"

namespace farspan::simt {

struct GraphNode {
  std::function<void()> run;
  std::vector<std::size_t> after;  // nodes, all earlier in the list
};
using GraphNodes = std::vector<GraphNode>;

// A recording under way, shared by the streams that take part.
struct Capture {
  GraphNodes nodes;
  bool broken = false;  // by a call that a recording does not allow
};

// Each node once, behind those that it comes after, else in a random order.
void run_graph(const GraphNodes& nodes, Disorder& disorder);

// Whether every node comes before one of `last`.
bool all_joined(const GraphNodes& nodes, const std::vector<std::size_t>& last);

}  // namespace farspan::simt
