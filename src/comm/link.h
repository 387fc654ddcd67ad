// What a transport of host memory supplies: bytes from rank to rank of one group, and the fate of
// the job. Collectives on top of it: comm/schedule.h, comm/operation.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "comm/communicator.h"
#include "comm/engine.h"
#include "comm/schedule.h"
#include "comm/shared_error.h"

namespace farspan {

enum class Channel : std::uint8_t { kCall, kData };  // headers, payload

// Transfers under way. Destroyed only when all have landed or after cancel(). Not thread-safe.
class Flight {
 public:
  virtual ~Flight() = default;
  // Moves what can be moved; true when every transfer has landed. Throws Error(kCommunication).
  virtual bool poll() = 0;
  virtual bool landed(std::size_t transfer) const = 0;
  // A rank of the group whose program has ended with a transfer of this flight still open.
  virtual std::optional<int> lost_peer() = 0;
  // Gives up: the buffers are not touched afterwards, except by messages that the peer has begun to
  // read from them.
  virtual void cancel() noexcept = 0;
};

class Link {
 public:
  virtual ~Link() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual std::string_view transport() const = 0;
  virtual Engine& engine() = 0;
  // This rank's number in the whole job, for people.
  virtual int job_rank() const = 0;

  // Starts transfers with other ranks. A send meets the receive of equal channel, sequence and
  // size, and several of one pair of ranks meet in the order of starting. Transfers of unequal
  // sizes do not meet: where ranks disagree, their headers tell, and memory stays as it is.
  virtual std::unique_ptr<Flight> start(Channel channel, std::uint64_t sequence,
                                        std::span<const Transfer> transfers) = 0;

  // The group of ranks with this rank's color, ordered by (key, rank); `places` by rank, the same
  // on every rank. Called by all at once, for the collective `sequence`.
  virtual std::unique_ptr<Link> split(std::span<const SplitPlace> places,
                                      std::uint64_t sequence) = 0;

  // Whether transfers may name device memory. (CUDA-aware MPI.)
  virtual bool moves_device_memory() const { return false; }

  virtual bool failed() const = 0;
  // Throws SharedError(kCommunication, report = false) once the job has failed.
  virtual void check_job() const = 0;
  // Fails the job: every rank's check_job() throws from now on. `report`: the error is to be thrown
  // by raise().
  virtual void announce(const Error& error, bool report) noexcept = 0;
  // Throws the job's error if it is this rank's to report, else `error` (comm/fate.h).
  [[noreturn]] virtual void raise(const SharedError& error) = 0;
  virtual void abort(ExitCode code, std::string_view reason) noexcept = 0;
};

// The members of rank `rank`'s group after a split, in the group's order.
std::vector<int> split_members(std::span<const SplitPlace> places, int rank);

}  // namespace farspan
