#include "comm/schedule.h"

#include <algorithm>
#include <cstring>

#include "comm/reduce.h"

namespace farspan {
namespace {

// Chunks of a reduction: large enough for bandwidth, small enough that a chunk received is still in
// the second-level cache when it is added (docs/adr/0003).
constexpr std::size_t kReduceChunk = std::size_t{512} << 10;
constexpr std::size_t kMinReduceChunk = std::size_t{4} << 10;
constexpr std::size_t kBroadcastChunk = std::size_t{1} << 20;

void copy_bytes(std::byte* dst, const std::byte* src, std::size_t bytes) {
  if (bytes != 0 && dst != src) std::memmove(dst, src, bytes);
}

void add_if_any(std::vector<Transfer>& transfers, bool send, int peer, std::byte* data,
                std::size_t bytes) {
  if (bytes != 0) transfers.push_back({.send = send, .peer = peer, .data = data, .bytes = bytes});
}

// Everything in one phase; a message to oneself is copied.
class Exchange final : public Schedule {
 public:
  Exchange(int rank, std::span<const Message> sends, std::span<const Message> recvs) {
    add(rank, sends, true, self_send_);
    add(rank, recvs, false, self_recv_);
    FARSPAN_CHECK(self_send_.bytes() == self_recv_.bytes(),
                  "rank {} sends itself {} bytes and expects {}", rank, self_send_.bytes(),
                  self_recv_.bytes());
  }
  bool begin_phase(int k, std::byte*, std::vector<Transfer>& transfers) override {
    if (k == 0) transfers.insert(transfers.end(), transfers_.begin(), transfers_.end());
    return k == 0;
  }
  void end_phase(int, std::byte*) override {
    copy_bytes(self_recv_.data, self_send_.data, self_send_.bytes());
  }

 private:
  void add(int rank, std::span<const Message> messages, bool send, Tensor& to_self) {
    for (const Message& m : messages) {
      if (m.peer == rank)
        to_self = m.buffer;
      else
        add_if_any(transfers_, send, m.peer, m.buffer.data, m.buffer.bytes());
    }
  }
  std::vector<Transfer> transfers_;
  Tensor self_send_, self_recv_;
};

// all_gather (every peer gets all of `in`) and all_to_all (peer j gets block j of it).
class Spread final : public Schedule {
 public:
  Spread(int rank, int size, Tensor in, Tensor out, bool whole)
      : rank_(rank), size_(size), in_(in.data), out_(out.data), whole_(whole) {
    block_ = whole ? in.bytes() : in.bytes() / static_cast<std::size_t>(size);
  }
  bool begin_phase(int k, std::byte*, std::vector<Transfer>& transfers) override {
    if (k != 0) return false;
    for (int step = 1; step < size_; ++step) {  // different peers first on different ranks
      const int to = (rank_ + step) % size_;
      const int from = (rank_ - step + size_) % size_;
      add_if_any(transfers, true, to, source(to), block_);
      add_if_any(transfers, false, from, out_ + block_ * static_cast<std::size_t>(from), block_);
    }
    return true;
  }
  void end_phase(int, std::byte*) override {
    copy_bytes(out_ + block_ * static_cast<std::size_t>(rank_), source(rank_), block_);
  }

 private:
  std::byte* source(int peer) const {
    return whole_ ? in_ : in_ + block_ * static_cast<std::size_t>(peer);
  }
  int rank_, size_;
  std::byte* in_;
  std::byte* out_;
  bool whole_;
  std::size_t block_;
};

// What all_reduce and reduce_scatter share: blocks cut into chunks, and scratch for one chunk from
// each other rank.
class Reduction : public Schedule {
 public:
  Reduction(int rank, int size, Tensor buffer, ReduceOp op)
      : rank_(rank),
        size_(size),
        buffer_(buffer.data),
        count_(buffer.numel()),
        dtype_(buffer.dtype),
        op_(op),
        element_(size_of(buffer.dtype)) {
    const auto others = static_cast<std::size_t>(std::max(1, size - 1));
    const std::size_t chunk = std::clamp(kMaxReduceScratch / others, kMinReduceChunk, kReduceChunk);
    const std::int64_t longest = (count_ + size - 1) / size;
    chunk_ = std::clamp<std::int64_t>(longest, 1, static_cast<std::int64_t>(chunk / element_));
    rounds_ = static_cast<int>((longest + chunk_ - 1) / chunk_);
  }
  std::size_t scratch_bytes() const override {
    return count_ == 0 ? 0 : slot_bytes() * static_cast<std::size_t>(size_ - 1);
  }

 protected:
  struct Piece {
    std::int64_t begin;
    std::int64_t count;
  };
  // Chunk `round` of block `b`, in elements of the buffer. May be empty in the last round.
  Piece piece(int b, int round) const {
    const std::int64_t begin = count_ * b / size_ + chunk_ * round;
    const std::int64_t end = std::min(count_ * (b + 1) / size_, begin + chunk_);
    return {begin, std::max<std::int64_t>(0, end - begin)};
  }
  std::byte* at(std::int64_t element) const {
    return buffer_ + static_cast<std::size_t>(element) * element_;
  }
  std::size_t bytes_of(const Piece& p) const {
    return static_cast<std::size_t>(p.count) * element_;
  }

  void begin_scatter(int round, std::byte* scratch, std::vector<Transfer>& transfers) const {
    const Piece mine = piece(rank_, round);
    for (int step = 1; step < size_; ++step) {
      const int to = (rank_ + step) % size_;
      const int from = (rank_ - step + size_) % size_;
      const Piece theirs = piece(to, round);
      add_if_any(transfers, true, to, at(theirs.begin), bytes_of(theirs));
      add_if_any(transfers, false, from, slot(scratch, from), bytes_of(mine));
    }
  }
  void end_scatter(int round, std::byte* scratch, std::byte* out) const {
    const Piece mine = piece(rank_, round);
    if (mine.count == 0) return;
    std::vector<const std::byte*> sources;
    sources.reserve(static_cast<std::size_t>(size_));
    for (int j = 0; j < size_; ++j)
      sources.push_back(j == rank_ ? at(mine.begin) : slot(scratch, j));
    reduce_in_order(dtype_, op_, sources, out, mine.count);
  }

  const int rank_, size_;
  std::byte* const buffer_;
  const std::int64_t count_;
  const DType dtype_;
  const ReduceOp op_;
  const std::size_t element_;
  std::int64_t chunk_;  // elements
  int rounds_;

 private:
  std::size_t slot_bytes() const {
    return (static_cast<std::size_t>(chunk_) * element_ + 63) / 64 * 64;
  }
  std::byte* slot(std::byte* scratch, int from) const {
    return scratch + slot_bytes() * static_cast<std::size_t>(from < rank_ ? from : from - 1);
  }
};

class AllReduce final : public Reduction {
 public:
  using Reduction::Reduction;
  bool begin_phase(int k, std::byte* scratch, std::vector<Transfer>& transfers) override {
    if (size_ == 1 || k > rounds_) return false;
    if (k > 0) begin_gather(k - 1, transfers);
    if (k < rounds_) begin_scatter(k, scratch, transfers);
    return true;
  }
  void end_phase(int k, std::byte* scratch) override {
    if (k < rounds_) end_scatter(k, scratch, at(piece(rank_, k).begin));
  }

 private:
  void begin_gather(int round, std::vector<Transfer>& transfers) const {
    const Piece mine = piece(rank_, round);
    for (int step = 1; step < size_; ++step) {
      const int to = (rank_ + step) % size_;
      const int from = (rank_ - step + size_) % size_;
      const Piece theirs = piece(from, round);
      add_if_any(transfers, true, to, at(mine.begin), bytes_of(mine));
      add_if_any(transfers, false, from, at(theirs.begin), bytes_of(theirs));
    }
  }
};

class ReduceScatter final : public Reduction {
 public:
  ReduceScatter(int rank, int size, Tensor in, Tensor out, ReduceOp op)
      : Reduction(rank, size, in, op), out_(out.data) {}
  bool begin_phase(int k, std::byte* scratch, std::vector<Transfer>& transfers) override {
    if (k >= rounds_) return false;
    begin_scatter(k, scratch, transfers);
    return true;
  }
  void end_phase(int k, std::byte* scratch) override {
    end_scatter(k, scratch, out_ + static_cast<std::size_t>(chunk_ * k) * element_);
  }

 private:
  std::byte* out_;
};

class Broadcast final : public Schedule {
 public:
  Broadcast(int rank, int size, Tensor buffer, int root)
      : data_(buffer.data), bytes_(buffer.bytes()) {
    const int relative = (rank - root + size) % size;  // place in a tree rooted at 0
    int span = 1;                                      // the subtree: [relative, relative + span)
    while (span < size && (relative & span) == 0) span <<= 1;
    if (relative != 0) parent_ = (relative - span + root) % size;
    for (span >>= 1; span > 0; span >>= 1)  // the largest subtree first
      if (relative + span < size) children_.push_back((relative + span + root) % size);
    chunks_ = static_cast<int>((bytes_ + kBroadcastChunk - 1) / kBroadcastChunk);
  }
  bool begin_phase(int k, std::byte*, std::vector<Transfer>& transfers) override {
    if (bytes_ == 0 || k > chunks_) return false;
    if (parent_ >= 0 && k < chunks_) add_if_any(transfers, false, parent_, at(k), size_at(k));
    if (k > 0)
      for (const int child : children_)
        add_if_any(transfers, true, child, at(k - 1), size_at(k - 1));
    return true;
  }

 private:
  std::byte* at(int chunk) const {
    return data_ + kBroadcastChunk * static_cast<std::size_t>(chunk);
  }
  std::size_t size_at(int chunk) const {
    return std::min(kBroadcastChunk, bytes_ - kBroadcastChunk * static_cast<std::size_t>(chunk));
  }
  std::byte* data_;
  std::size_t bytes_;
  int parent_ = -1;
  std::vector<int> children_;
  int chunks_;
};

class Barrier final : public Schedule {
 public:
  Barrier(int rank, int size) : rank_(rank), size_(size) {}
  bool begin_phase(int k, std::byte*, std::vector<Transfer>& transfers) override {
    const int distance = 1 << k;
    if (distance >= size_) return false;
    transfers.push_back({.send = true, .peer = (rank_ + distance) % size_});
    transfers.push_back({.send = false, .peer = (rank_ - distance + size_) % size_});
    return true;
  }

 private:
  int rank_, size_;
};

}  // namespace

void Schedule::end_phase(int, std::byte*) {}

std::unique_ptr<Schedule> schedule_exchange(int rank, std::span<const Message> sends,
                                            std::span<const Message> recvs) {
  return std::make_unique<Exchange>(rank, sends, recvs);
}
std::unique_ptr<Schedule> schedule_all_reduce(int rank, int size, Tensor buffer, ReduceOp op) {
  return std::make_unique<AllReduce>(rank, size, buffer, op);
}
std::unique_ptr<Schedule> schedule_reduce_scatter(int rank, int size, Tensor in, Tensor out,
                                                  ReduceOp op) {
  return std::make_unique<ReduceScatter>(rank, size, in, out, op);
}
std::unique_ptr<Schedule> schedule_all_gather(int rank, int size, Tensor in, Tensor out) {
  return std::make_unique<Spread>(rank, size, in, out, true);
}
std::unique_ptr<Schedule> schedule_all_to_all(int rank, int size, Tensor in, Tensor out) {
  return std::make_unique<Spread>(rank, size, in, out, false);
}
std::unique_ptr<Schedule> schedule_broadcast(int rank, int size, Tensor buffer, int root) {
  return std::make_unique<Broadcast>(rank, size, buffer, root);
}
std::unique_ptr<Schedule> schedule_barrier(int rank, int size) {
  return std::make_unique<Barrier>(rank, size);
}

}  // namespace farspan
