#include "comm/call.h"

namespace farspan {
namespace {

std::string_view name_of_op(ReduceOp op) {
  switch (op) {
    case ReduceOp::kSum:
      return "sum";
    case ReduceOp::kMax:
      return "max";
    case ReduceOp::kMin:
      return "min";
  }
  return "?";
}

Error communication_error(std::string what) {
  return Error(ExitCode::kCommunication,
               {.what = std::move(what),
                .fix = "start every rank from the same build with the same configuration; if they "
                       "are the same, this is a bug in Farspan: please report it"});
}

}  // namespace

std::string Call::describe() const {
  const std::string_view name = name_of(kind);
  switch (kind) {
    case Collective::kAllReduce:
    case Collective::kReduceScatter:
      return fmt::format("{} of {} bytes ({} of {})", name, bytes, name_of_op(op),
                         farspan::name_of(dtype));
    case Collective::kAllGather:
    case Collective::kAllToAll:
      return fmt::format("{} of {} bytes", name, bytes);
    case Collective::kBroadcast:
      return fmt::format("{} of {} bytes from rank {}", name, bytes, detail);
    case Collective::kShift:
      return fmt::format("{} by {}", name, detail);
    case Collective::kExchange:
    case Collective::kBarrier:
    case Collective::kSplit:
      return std::string(name);
  }
  return std::string(name);
}

Error disagreement(int rank_a, const Call& a, int rank_b, const Call& b) {
  if (rank_b < rank_a) return disagreement(rank_b, b, rank_a, a);
  // Headers are matched by sequence number: unequal ones mean that our own matching failed.
  FARSPAN_CHECK(a.sequence == b.sequence, "headers #{} and #{} met", a.sequence, b.sequence);
  return communication_error(fmt::format("collective #{}: rank {} calls {}, rank {} calls {}",
                                         a.sequence, rank_a, a.describe(), rank_b, b.describe()));
}

Error size_disagreement(const Call& call, int sender, std::int64_t sent, int receiver,
                        std::int64_t expected) {
  return communication_error(
      fmt::format("collective #{} ({}): rank {} sends {} bytes to rank {}, which expects {}",
                  call.sequence, call.describe(), sender, sent, receiver, expected));
}

}  // namespace farspan
