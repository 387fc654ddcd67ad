// Communication between the ranks of a group. Transports: self, thread (ranks of one process), mpi,
// nccl, dry (counts only).
//
//   Pending p = comm.shift({.send = cur, .recv = next}, stream);   // starts
//   ... compute ...
//   p.wait();                                                      // a Pending must be waited on
//
// Every rank of the group calls the same operations in the same order. Each operation is one
// numbered collective: a rank that calls another one, or with another size, is reported by name on
// every rank, in this operation or its next (Error kCommunication: "collective #12: rank 0 calls
// all_reduce of 4096 bytes (sum of f32), rank 1 calls barrier"), not waited for. The checks see one
// communicator: ranks that call two communicators in different orders and block wait until the
// watchdog ends them.
//
// Reductions add in ascending rank order, in f32 or f64 (bf16 is widened and rounded once), so the
// result is bitwise equal on every rank, on every run and under every transport for CPU tensors.
// Max and min carry a NaN on from any rank.
// Tensors are the host's, or of the device of a communicator that was made for one (comm/factory.h,
// comm/nccl.h): then an operation starts after the work that `stream` holds when it begins, and
// wait() makes `stream` wait for it. Buffers must stay untouched until wait(). Not thread-safe: one
// communicator belongs to one thread; use duplicate() for another thread.
#pragma once

#include <array>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/device.h"
#include "core/error.h"
#include "core/tensor.h"

namespace farspan {

enum class ReduceOp : std::uint8_t { kSum, kMax, kMin };

enum class Collective : std::uint8_t {
  kShift,
  kExchange,
  kAllReduce,
  kAllGather,
  kReduceScatter,
  kAllToAll,
  kBroadcast,
  kBarrier,
  kSplit
};
inline constexpr int kNumCollectives = 9;
std::string_view name_of(Collective collective);

// What this rank has sent: payload bytes handed to other ranks (a message to itself counts 0), as
// the algorithm sends them, added when they are sent: read them after wait(). all_reduce of n
// bytes: 2 n (P-1)/P (reduce-scatter, then all-gather; exact block borders in comm/schedule.h).
// Headers of the agreement check, the tokens of a barrier and the keys of a split are not payload:
// 0 bytes.
struct CommCounters {
  struct Entry {
    std::int64_t calls = 0;
    std::int64_t bytes_sent = 0;
  };
  std::array<Entry, kNumCollectives> by_collective{};
  const Entry& of(Collective c) const { return by_collective[static_cast<std::size_t>(c)]; }
  std::int64_t total_bytes() const;
};

// An operation under way. Must be waited on before it is destroyed: otherwise the program ends with
// a message. Only while an exception unwinds past it is the operation given up, and with it the job
// (the other ranks get an Error). wait() on an empty or finished Pending does nothing.
class Pending {
 public:
  Pending() = default;
  // `finish` blocks until the operation is complete (on a GPU: makes the stream wait for it).
  explicit Pending(std::function<void()> finish) : finish_(std::move(finish)) {}
  Pending(Pending&& other) noexcept
      : finish_(std::exchange(other.finish_, nullptr)), unwinding_(other.unwinding_) {}
  Pending& operator=(Pending&& other) noexcept;
  ~Pending();

  void wait();
  bool active() const { return finish_ != nullptr; }

 private:
  std::function<void()> finish_;
  int unwinding_ = std::uncaught_exceptions();  // exceptions in flight when it began
};

struct Message {
  int peer = 0;
  Tensor buffer;
};

struct ShiftArgs {
  Tensor send, recv;  // may differ in size; peers' sizes must match
  int offset = 1;     // to rank + offset, from rank - offset, modulo P
};

// A rank's place after a split: see Communicator::split.
struct SplitPlace {
  int color = 0;
  int key = 0;
};

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual std::string_view transport() const = 0;  // "self", "thread", "mpi", "nccl", "dry"

  // Grouped point-to-point: all sends and receives proceed together, in any order, any sizes
  // (empty buffers are not sent). At most one message per ordered pair of ranks and call; a message
  // to oneself is copied. Called by every rank of the group, also with nothing to send.
  virtual Pending exchange(std::span<const Message> sends, std::span<const Message> recvs,
                           Stream& stream) = 0;
  virtual Pending shift(const ShiftArgs& args, Stream& stream) = 0;
  // In place. f32, f64, bf16, i32, i64.
  virtual Pending all_reduce(Tensor buffer, ReduceOp op, Stream& stream) = 0;
  // out = concatenation of every rank's `in` by rank; equal sizes. `in` may be its place in `out`.
  virtual Pending all_gather(Tensor in, Tensor out, Stream& stream) = 0;
  // out = this rank's block of the sum; in has P equal blocks. `out` may be that block of `in`.
  virtual Pending reduce_scatter(Tensor in, Tensor out, ReduceOp op, Stream& stream) = 0;
  // in and out have P equal blocks; block j of in goes to rank j.
  virtual Pending all_to_all(Tensor in, Tensor out, Stream& stream) = 0;
  virtual Pending broadcast(Tensor buffer, int root, Stream& stream) = 0;
  virtual void barrier() = 0;

  // Ranks with equal `color` form a group, ordered by (key, rank). Collective. Not on dry, which
  // cannot know the other ranks' colors (checked): use split_by there.
  virtual std::unique_ptr<Communicator> split(int color, int key) = 0;
  // The same from a pure function that gives every rank's place, as a mesh knows it. Collective.
  // Works on every transport, dry included.
  virtual std::unique_ptr<Communicator> split_by(const std::function<SplitPlace(int rank)>& place) {
    const SplitPlace mine = place(rank());
    return split(mine.color, mine.key);
  }
  // The same group for another thread, or for operations of another order. Collective.
  std::unique_ptr<Communicator> duplicate() {
    return split_by([](int r) { return SplitPlace{.color = 0, .key = r}; });
  }

  // Tears the whole job down from an error on this rank, so that no other rank waits for ever.
  // MPI: ends every process with `code`. Thread ranks: every pending or later call on any of the
  // job's communicators throws Error(kCommunication). `reason` reaches people: through those
  // errors, or under MPI on stderr; leave it empty when the error has been printed already.
  virtual void abort(ExitCode code, std::string_view reason) noexcept = 0;

  // Whether the job has failed, as far as is known here. Thread-safe.
  virtual bool failed() const { return false; }

  virtual CommCounters counters() const = 0;
  virtual void reset_counters() = 0;
  // The last operation begun, for the watchdog: "all_reduce #1234, 4096 bytes". Thread-safe.
  virtual std::string last_operation() const = 0;
};

}  // namespace farspan
