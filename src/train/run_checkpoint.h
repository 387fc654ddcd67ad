// Between the engine's device tensors and checkpoint files.
//
//   Snapshot snapshot(engine, world);                    // once
//   writer.save(step, snapshot.take(engine), state);     // copies this rank's share to the host
//   restore(engine, CheckpointReader(path));             // any number of ranks
#pragma once

#include <vector>

#include "io/checkpoint.h"
#include "train/engine.h"

namespace farspan {

// Every rank holds all weights; rank r of P saves the r-th of P equal runs of each tensor.
class Snapshot {
 public:
  Snapshot(Engine& engine, const Communicator& world);

  // Copies the device's present state. The pieces point into this object, which must not take again
  // before the save that uses them has ended.
  std::vector<TensorPiece> take(Engine& engine);
  std::size_t bytes() const { return buffer_.bytes(); }

 private:
  struct Share {
    std::int64_t begin, end;
  };
  Share share_of(std::int64_t numel) const;

  int rank_, size_;
  Buffer buffer_;
};

// Masters, moments and step counters from a checkpoint; the compute copies follow. Throws
// Error(kBadData) when a tensor is missing or has another shape.
void restore(Engine& engine, const CheckpointReader& reader);

}  // namespace farspan
