// How ranks come to be.
//
//   run_local_ranks(4, [](Communicator& world) { ... });       // ranks as threads of this process
//   MpiSession mpi(argc, argv); mpi.world()                    // ranks as processes
#pragma once

#include <functional>
#include <memory>

#include "comm/communicator.h"

namespace farspan {

std::unique_ptr<Communicator> make_self_communicator();

// A world of `size` ranks seen from `rank` that moves nothing and counts bytes (dry runs).
std::unique_ptr<Communicator> make_dry_communicator(int rank, int size);

// Runs `body` on `size` threads, one rank each, and returns when all have ended. If bodies throw,
// the job is aborted and the first error that is not a consequence of that abort is rethrown. Other
// ranks that wait for a rank that has returned get Error(kCommunication).
void run_local_ranks(int size, const std::function<void(Communicator& world)>& body);

struct StagingOptions {
  std::size_t chunk_bytes = std::size_t{16} << 20;  // of an all_reduce, in pinned memory at once
};

// The group of `hosts` once more, for tensors of `device` and of the host in any mix: device
// tensors go through pinned host memory on streams of the communicator's own (comm/staging.h), or
// straight where MPI reads and writes device memory itself. Ranks may share a device. wait() blocks
// until the data has arrived on the host, but never for other work of the device. Collective over
// `hosts`, a communicator of this header's; `device` and the streams that operations are given must
// outlive the result.
std::unique_ptr<Communicator> make_staged_communicator(Communicator& hosts, Device& device,
                                                       StagingOptions options = {});

// Whether messages of these ranks are read from device memory, and written to it, by MPI itself.
bool moves_device_memory(const Communicator& hosts);

struct MpiOptions {
  // A thread that moves messages while the ranks compute (docs/adr/0003-communication-progress.md).
  // Off only to measure what it brings.
  bool progress_thread = true;
};

// The MPI library, initialised (MPI_THREAD_MULTIPLE) for the lifetime of this object. A program has
// at most one. If the process was not started by mpirun, size() is 1. Throws
// Error(kCommunication) when the library cannot serve several threads.
//
// Catch errors inside the lifetime of this object. A SharedError reaches every rank: print it if
// report(), and return or throw on with its code. Any other is this rank's alone: print it and call
// world().abort(code, ""); mpirun then ends the other ranks and returns `code`. The destructor
// waits for the other ranks to come to their ends; when they do not, or after a failure, it leaves
// MPI as it is, so that mpirun ends the job when this process exits.
class MpiSession {
 public:
  MpiSession(int* argc, char*** argv, MpiOptions options = {});
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;
  Communicator& world();
  // Ranks on this machine, and this rank's place among them (for thread counts and GPU choice).
  int local_size() const;
  int local_rank() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace farspan
