// Between the engine's device tensors and checkpoint files.
//
//   Snapshot snapshot(engine, world);                    // once
//   auto pieces = snapshot.take(engine);                 // starts copying this rank's share
//   writer.save(step, pieces, state, [&] { snapshot.wait(); });
//   restore(engine, CheckpointReader(path));             // any number of ranks
#pragma once

#include <string>
#include <vector>

#include "io/checkpoint.h"
#include "train/engine.h"

namespace farspan {

// Every rank holds all weights; rank r of P saves the r-th of P equal runs of each tensor.
class Snapshot {
 public:
  Snapshot(Engine& engine, const Communicator& world);

  // Copies the device's present state, beside what the engine does next: its following step updates
  // nothing before the copies are done. The pieces point into this object, which must not take
  // again before the save that uses them has ended, and hold the state once wait() has returned.
  std::vector<TensorPiece> take(Engine& engine);
  // From any thread.
  void wait() { done_->synchronize(); }
  std::size_t bytes() const { return buffer_.bytes(); }

 private:
  struct Share {
    std::int64_t begin, end;
  };
  Share share_of(std::int64_t numel) const;

  int rank_, size_;
  Buffer buffer_;
  std::unique_ptr<Stream> copies_;
  std::unique_ptr<Event> begun_, done_;
};

// The f32 tensor `name`, whole, to `host`. Throws Error(kBadData) when the checkpoint lacks it or
// holds it in another shape.
void read_tensor(const CheckpointReader& reader, const std::string& name, const Shape& shape,
                 float* host);

// Masters from a checkpoint of any run whose model has these shapes, and the compute copies. Throws
// Error(kBadData) as restore() does.
void restore_weights(Engine& engine, const CheckpointReader& reader);

// Masters, moments and step counters from a checkpoint; the compute copies follow. Throws
// Error(kBadData) when a tensor is missing or has another shape.
void restore(Engine& engine, const CheckpointReader& reader);

}  // namespace farspan
