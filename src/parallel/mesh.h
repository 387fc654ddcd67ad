// The ranks of a run as a grid, data x ring x ulysses: world rank = data_rank * context_size +
// ring_rank * ulysses_size + ulysses_rank. Ranks of one context group (ring x ulysses) share every
// sequence; data groups read different sequences. Neighbouring ranks form a Ulysses group: they sit
// on one machine, where all-to-all is cheap.
#pragma once

#include <algorithm>
#include <memory>

#include "comm/communicator.h"
#include "parallel/sequence_layout.h"

namespace farspan {

// A rank's place among the context ranks that share its sequences.
struct ContextPlace {
  int ring_rank = 0, ring_size = 1;
  int ulysses_rank = 0, ulysses_size = 1;
};

// The rows of a ring place with `rows` rows that Ulysses rank u of U holds between attentions:
// consecutive, sizes differing by at most one. With `block` > 1 the borders are multiples of it.
inline IndexRange ulysses_share(std::int64_t rows, int u, int size, std::int64_t block = 1) {
  const std::int64_t blocks = (rows + block - 1) / block;
  const auto border = [&](std::int64_t i) { return std::min(rows, blocks * i / size * block); };
  return {border(u), border(u + 1)};
}

class Mesh {
 public:
  // Collective over `world`, which must outlive the mesh. CHECKs data * context == world.size() and
  // that ulysses divides context.
  Mesh(Communicator& world, int data_size, int context_size, int ulysses_size = 1);

  Communicator& world() const { return *world_; }
  Communicator& ring() const { return *ring_; }        // same data and Ulysses rank
  Communicator& ulysses() const { return *ulysses_; }  // same data and ring rank
  int data_size() const { return data_size_; }
  int context_size() const { return context_size_; }
  int data_rank() const { return world_->rank() / context_size_; }
  int context_rank() const { return world_->rank() % context_size_; }
  ContextPlace place() const;
  // Sent by this rank among its context ranks (ring and Ulysses together).
  CommCounters context_counters() const;

 private:
  Communicator* world_;
  std::unique_ptr<Communicator> ring_, ulysses_;
  int data_size_;
  int context_size_;
  int ulysses_size_;
};

}  // namespace farspan
