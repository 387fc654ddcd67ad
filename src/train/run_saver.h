// The checkpoints that a run writes while it goes on: one save at a time, off the step.
//
//   RunSaver saver(world, {.folder = ..., .keep_last = 3}, log);
//   saver.prepare(engine);                      // memory for a snapshot
//   saver.save(engine, state);
//   train_step(..., {.save_failed = saver.failed()});
//   saver.finish();                             // throws what went wrong, on every rank
#pragma once

#include <exception>
#include <filesystem>
#include <memory>
#include <optional>

#include "core/log.h"
#include "io/checkpoint.h"
#include "train/run_checkpoint.h"

namespace farspan {

class RunSaver {
 public:
  // Collective over `world`, ranks of the host. Errors: those of CheckpointWriter. `log` must
  // outlive this object.
  RunSaver(Communicator& world, CheckpointWriter::Options options, Log& log);

  void prepare(Engine& engine) { snapshot_.emplace(engine, world_); }

  // Collective. Waits for the save before it, whose error it throws.
  void save(Engine& engine, const io::TrainState& state);
  // True when the save under way has failed on this rank; its error is kept for finish().
  bool failed();
  // Waits for the save under way; all ranks call it at the same place and all throw if it failed.
  void finish();

  // The newest checkpoint that this run has written; "" before the first.
  const std::filesystem::path& newest() const { return newest_; }
  std::size_t snapshot_bytes() const { return snapshot_ ? snapshot_->bytes() : 0; }

 private:
  void announce(const SaveOutcome& outcome);

  Communicator& world_;
  Log& log_;
  std::optional<Snapshot> snapshot_;
  CheckpointWriter writer_;  // after the snapshot, whose memory its thread reads
  std::exception_ptr error_;
  std::filesystem::path newest_;
};

}  // namespace farspan
