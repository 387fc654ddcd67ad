// The ranks of a run as a grid, data x context: world rank = data_rank * context_size +
// context_rank. Ranks of one context group share every sequence; data groups read different
// sequences.
#pragma once

#include <memory>

#include "comm/communicator.h"

namespace farspan {

class Mesh {
 public:
  // Collective over `world`, which must outlive the mesh. CHECKs data * context == world.size().
  Mesh(Communicator& world, int data_size, int context_size);

  Communicator& world() const { return *world_; }
  Communicator& context() const { return *context_; }  // the ranks that share this rank's sequences
  int data_size() const { return data_size_; }
  int context_size() const { return context_size_; }
  int data_rank() const { return world_->rank() / context_size_; }
  int context_rank() const { return world_->rank() % context_size_; }

 private:
  Communicator* world_;
  std::unique_ptr<Communicator> context_;
  int data_size_;
  int context_size_;
};

}  // namespace farspan
