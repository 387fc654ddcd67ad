// NCCL between GPUs. Operations run on a queue of their own, ordered after the work that the
// caller's stream holds when they begin; Pending::wait() makes the caller's stream wait, never the
// host.
//
//   auto gpu = make_nccl_communicator(*bootstrap, device);   // bootstrap: any host transport
//
// Where it keeps less than communicator.h promises of CPU tensors:
//   * Ranks that disagree (another call, another size) are not named. They wait for each other
//   until
//     the watchdog ends them, with last_operation() of each rank.
//   * Sums are added in NCCL's order: equal on all ranks and, on the same GPUs, on every run, but
//   not
//     the bits of the CPU transports.
//   * Sums of bf16 would be rounded at every hop, and max and min of floating point would lose a
//   NaN:
//     both are refused (CHECK). Reduce in f32; for a maximum use integers.
// Tensors of the host: operations on a host stream (one without a native handle) go over the
// bootstrap, and are counted there.
//
// Byte counters count what the schedules of comm/schedule.h would send, as every transport does, so
// that they equal a dry run's; NCCL itself may choose another algorithm.
//
// Memory: what an operation uses must stay until the work after its wait() is done on the stream,
// not only until wait() returns.
#pragma once

#include <memory>
#include <string>

#include "comm/communicator.h"

namespace farspan {

// False where this build has no NCCL: then there is no version, and the third throws Error(kUsage).
bool nccl_is_built();
std::string nccl_version();  // "2.28.9"

// Collective over `bootstrap`, which carries the unique id and must outlive the result (it also
// serves barrier(), split() and abort()). `device`: index of this rank's GPU, one rank per GPU; it
// becomes this thread's current device. All tensors must be on it. Throws on all ranks when one
// fails: Error(kCommunication) naming NCCL's reason.
//
// split() makes its groups with unique ids of their own, so operations of this communicator may be
// under way. abort() on any of them, from any thread, also ends the kernels of all the others of
// this rank. A communicator that is destroyed while an exception unwinds is aborted, not finished.
std::unique_ptr<Communicator> make_nccl_communicator(Communicator& bootstrap, int device);

}  // namespace farspan
