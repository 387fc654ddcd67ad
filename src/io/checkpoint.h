// Checkpoints: HDF5 shards, a protobuf manifest with hashes, committed by rename.
//
//   checkpoints/step_00000050/shard_00000.h5 ... manifest.pb     (manifest.json beside it, for
//   people)
//
// Commit protocol (docs/adr): every rank writes its shard into step_N.tmp.<uuid>/ and fsyncs it;
// all ranks report size and XXH3-128; rank 0 writes the manifest, fsyncs it and the directory,
// renames to step_N and fsyncs the parent. A checkpoint is a directory whose manifest and hashes
// verify; nothing else is ever trusted, and a partial directory never blocks a resume.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "core/log.h"
#include "core/tensor.h"
#include "io/manifest.pb.h"

namespace farspan {

// A run of elements [offset, offset + data.numel()) of the flattened tensor `name`, on the host.
// Names: weights "model.layers.0.self_attn.q_proj.weight" (f32 master, Hugging Face names),
// optimizer "adamw.m/<weight>", "adamw.v/<weight>".
struct TensorPiece {
  std::string name;
  Shape global_shape;
  std::int64_t offset = 0;
  Tensor data;  // 1-D view of host memory that stays valid until the save has ended
};

struct SaveOutcome {
  std::int64_t step = 0;
  std::filesystem::path path;
  double seconds = 0;
  std::int64_t bytes = 0;  // of all shards
};

// Writes checkpoints off the step. One object per rank, all ranks alike; owns a thread and a
// duplicate of `world` for its barriers.
class CheckpointWriter {
 public:
  struct Options {
    std::filesystem::path folder;  // <output_dir>/checkpoints
    int keep_last = 3;
    std::int64_t keep_every = 0;
    std::string config_yaml{};   // resolved configuration, stored in the manifest
    std::string code_version{};  // of this build, stored in the manifest
    // Test hook, called on the writer's thread with the name of each protocol point reached
    // ("begun" and "shard_written" on every rank; "manifest_written", "renamed", "pruning" on rank
    // 0): lets tests kill the process there.
    std::function<void(std::string_view)> on_point{};
  };
  // Collective. Creates the folder, takes its lock (rank 0), and removes what killed runs have left
  // unfinished there. Throws Error(kUsage) on every rank when the folder cannot be written or
  // another run saves into it. `log` must outlive the writer.
  CheckpointWriter(Communicator& world, Options options, Log& log);
  ~CheckpointWriter();  // waits for the save under way; never throws

  // Collective. Starts writing `pieces` (whose memory must stay valid and unchanged until wait())
  // with `state`. At most one save is under way: a second call waits for the first, and throws its
  // error if it failed and that error was not yet delivered. An existing step_N is replaced in one
  // step once the new one is complete; until then the old one stands. Tensors must be covered
  // exactly once by the pieces of all ranks (checked: a gap or an overlap is a bug of the caller).
  // The pieces are read on the writer's thread, once `ready` has returned there.
  void save(std::int64_t step, std::vector<TensorPiece> pieces, const io::TrainState& state,
            std::function<void()> ready = {});
  // The outcome of a finished save, once; nullopt while none is finished. Throws the error of a
  // failed save (a SharedError; disk full: kExhausted), the same code on every rank; earlier
  // checkpoints are intact and a later save may be tried. Not collective: ranks may see the end of
  // one save at different steps, so ranks that must act on it together agree first.
  std::optional<SaveOutcome> poll();
  // Blocks until no save is under way; then as poll().
  std::optional<SaveOutcome> wait();
  bool busy() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// One reader belongs to one thread.
class CheckpointReader {
 public:
  // Throws Error(kBadData) naming the file when anything does not verify. `verify_hashes` reads
  // every shard once; false checks presence and sizes only.
  explicit CheckpointReader(std::filesystem::path step_folder, bool verify_hashes = true);
  ~CheckpointReader();
  const io::Manifest& manifest() const;
  // The tensor's entry (type, shape); nullptr when the checkpoint does not hold it.
  const io::TensorEntry* find(std::string_view name) const;
  // Elements [offset, offset + out.numel()) of tensor `name` into host memory, whatever shards hold
  // them. Throws Error(kBadData) when the checkpoint lacks them or stores another type.
  void read(std::string_view name, std::int64_t offset, Tensor out) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

struct CheckpointFolder {
  std::int64_t step = 0;
  std::filesystem::path path;
};
// The step_N folders under `checkpoints`, ascending, verified or not. Empty when there is none.
std::vector<CheckpointFolder> list_checkpoints(const std::filesystem::path& checkpoints);

// Renames the checkpoints after `step` to step_N.superseded.<id>, which nothing looks at: for a run
// that goes on from an earlier step than its newest. One rank calls it, before any save.
void set_aside_checkpoints_after(const std::filesystem::path& checkpoints, std::int64_t step,
                                 Log& log);

// The newest step folder under `checkpoints` that verifies; folders that do not are named in the
// log as skipped and left in place. nullopt when there is none.
std::optional<std::filesystem::path> find_latest_checkpoint(
    const std::filesystem::path& checkpoints, Log& log);

// XXH3-128 of the content, the same whatever the sharding: weights and optimizer over (name, shape,
// bytes) in name order; data over the data cursor and counters of TrainState. Optimizer state is
// what has a slash in its name. Verifies first (Error kBadData).
struct CheckpointDigest {
  std::string weights, optimizer, data;  // 32 hex digits each
};
CheckpointDigest digest_checkpoint(const std::filesystem::path& step_folder);

}  // namespace farspan
