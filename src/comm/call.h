// What a rank says about the collective it calls. Ranks exchange these 64 bytes beside the data, so
// that a disagreement is named instead of waited for.
//
// Rank r tells its successor r + 1 about every call and hears of its predecessor's. If all
// neighbours on the ring agree, all ranks agree; if two ranks disagree, some neighbours do. Header
// i of a communicator meets header i, whatever the two ranks call, so calls whose data would never
// meet (all_reduce against barrier) are found too. In shift and exchange, whose sizes are the
// ranks' own affair, a header also says how many bytes follow to this peer.
#pragma once

#include <cstdint>
#include <string>

#include "comm/communicator.h"

namespace farspan {

struct Call {
  static constexpr std::int64_t kUnstated = -1;

  std::uint64_t sequence = 0;  // 1, 2, ... per communicator
  std::uint64_t bytes = 0;     // buffer size where all ranks' must be equal, else 0
  std::int64_t bytes_to_you = kUnstated;
  std::int64_t detail = 0;        // root of a broadcast, offset of a shift
  std::uint64_t local_bytes = 0;  // this rank's buffers, for people; not compared
  Collective kind = Collective::kBarrier;
  DType dtype = DType::kU8;
  ReduceOp op = ReduceOp::kSum;
  std::uint8_t reserved[21] = {};

  std::string describe() const;  // "all_reduce of 4096 bytes (sum of f32)"
  bool same_call(const Call& other) const {
    return sequence == other.sequence && bytes == other.bytes && detail == other.detail &&
           kind == other.kind && dtype == other.dtype && op == other.op;
  }
};
static_assert(sizeof(Call) == 64);

// The error when two ranks' calls differ.
Error disagreement(int rank_a, const Call& a, int rank_b, const Call& b);
// The error when a sender and a receiver of one call name different sizes.
Error size_disagreement(const Call& call, int sender, std::int64_t sent, int receiver,
                        std::int64_t expected);

}  // namespace farspan
