// NCCL between GPUs. Operations run on a stream of their own, ordered after the work that the
// caller's stream holds when they begin; Pending::wait() makes the caller's stream wait, never the
// host.
//
//   auto gpu = make_nccl_communicator(*bootstrap, device);   // bootstrap: any host transport
#pragma once

#include <memory>

#include "comm/communicator.h"

namespace farspan {

// Collective over `bootstrap`, which carries the unique id and must outlive the result (it also
// serves barrier(), split() and abort()). `device`: index of this rank's GPU, one rank per GPU.
// Throws Error(kCommunication) naming NCCL's reason.
std::unique_ptr<Communicator> make_nccl_communicator(Communicator& bootstrap, int device);

}  // namespace farspan
