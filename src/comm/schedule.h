// The collectives as fixed sequences of point-to-point transfers. Every CPU transport executes
// these schedules and the dry transport counts them, so results and byte counts cannot differ.
//
// Legend: P ranks, r this rank, n elements. all_reduce's block b is elements [b n / P, (b+1) n /
// P), rounded down.
//
//   all_reduce      in rounds of at most a chunk of every block: chunk of block b from every rank
//   to
//                   rank b, added there in rank order, sent to every rank. Round k's scatter goes
//                   with round k-1's gather.
//   reduce_scatter  the first half of that;  all_gather, all_to_all  every rank to every other
//   broadcast       binomial tree from the root, in chunks that follow each other down the tree
//   barrier         dissemination: in round k a token to r + 2^k (Hensgen, Finkel and Manber, 1988)
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "comm/communicator.h"

namespace farspan {

// One transfer with another rank. Between two ranks, the transfers of one schedule meet in the
// order in which each lists them.
struct Transfer {
  bool send = false;
  int peer = 0;
  std::byte* data = nullptr;
  std::size_t bytes = 0;
};

class Schedule {
 public:
  virtual ~Schedule() = default;
  // Memory that the schedule needs beside the caller's buffers.
  virtual std::size_t scratch_bytes() const { return 0; }
  // Whether the memory that the next phase reads is there; false: to be asked again. Called before
  // each begin_phase.
  virtual bool ready() { return true; }
  // Appends the transfers of phase k; false when there is none. Called for k = 0, 1, ..., each
  // after end_phase(k - 1). Touches no memory: `scratch` and the buffers may be addresses only.
  virtual bool begin_phase(int k, std::byte* scratch, std::vector<Transfer>& transfers) = 0;
  // Local work once the transfers of phase k are done.
  virtual void end_phase(int k, std::byte* scratch);
  // On the owner's thread, after the last phase: the caller's stream may use the results from now
  // on.
  virtual void arrive() {}
};

// Most bytes of scratch that a reduction uses, at any size of buffer.
inline constexpr std::size_t kMaxReduceScratch = std::size_t{4} << 20;

std::unique_ptr<Schedule> schedule_exchange(int rank, std::span<const Message> sends,
                                            std::span<const Message> recvs);
std::unique_ptr<Schedule> schedule_all_reduce(int rank, int size, Tensor buffer, ReduceOp op);
std::unique_ptr<Schedule> schedule_reduce_scatter(int rank, int size, Tensor in, Tensor out,
                                                  ReduceOp op);
std::unique_ptr<Schedule> schedule_all_gather(int rank, int size, Tensor in, Tensor out);
std::unique_ptr<Schedule> schedule_all_to_all(int rank, int size, Tensor in, Tensor out);
std::unique_ptr<Schedule> schedule_broadcast(int rank, int size, Tensor buffer, int root);
std::unique_ptr<Schedule> schedule_barrier(int rank, int size);

}  // namespace farspan
