#include "comm/scheduled_communicator.h"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "comm/reduce.h"

namespace farspan {
namespace {

// An operation whose Pending has not been waited on; abandoned when that Pending unwinds.
class Handle {
 public:
  Handle(std::shared_ptr<Link> link, std::shared_ptr<Operation> operation)
      : link_(std::move(link)), operation_(std::move(operation)) {}
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() {
    if (waited_) return;
    operation_->abandon();
    link_->engine().remove(*operation_);
  }
  void wait() {
    waited_ = true;
    link_->engine().wait(*operation_);
  }

 private:
  std::shared_ptr<Link> link_;
  std::shared_ptr<Operation> operation_;
  bool waited_ = false;
};

void check_peers(std::span<const Message> messages, int size, std::string_view what) {
  std::vector<bool> seen(static_cast<std::size_t>(size), false);
  for (const Message& m : messages) {
    FARSPAN_CHECK(m.peer >= 0 && m.peer < size, "{} rank {} of {}", what, m.peer, size);
    const auto peer = static_cast<std::size_t>(m.peer);
    FARSPAN_CHECK(!seen[peer], "two messages {} rank {} in one exchange", what, m.peer);
    seen[peer] = true;
  }
}

std::uint64_t total_bytes(std::span<const Message> messages) {
  std::uint64_t sum = 0;
  for (const Message& m : messages) sum += m.buffer.bytes();
  return sum;
}

// What an exchange states to every other rank, 0 included: a message that one side does not know of
// would otherwise be waited for.
std::vector<Plan::Stated> stated(std::span<const Message> messages, int rank, int size) {
  std::vector<Plan::Stated> list;
  list.reserve(static_cast<std::size_t>(size - 1));
  for (int step = 1; step < size; ++step) list.push_back({(rank + step) % size, 0});
  for (const Message& m : messages)
    if (m.peer != rank)
      list[static_cast<std::size_t>((m.peer - rank + size) % size - 1)].bytes =
          static_cast<std::int64_t>(m.buffer.bytes());
  return list;
}

}  // namespace

ScheduledCommunicator::ScheduledCommunicator(int rank, int size) : rank_(rank), size_(size) {
  FARSPAN_CHECK(size >= 1 && rank >= 0 && rank < size, "rank {} of {}", rank, size);
}

Pending ScheduledCommunicator::begin(Plan plan) {
  plan.call.sequence = ++sequence_;
  ledger_->began(plan.call);
  return launch(std::move(plan));
}

Pending ScheduledCommunicator::exchange(std::span<const Message> sends,
                                        std::span<const Message> recvs, Stream&) {
  for (const Message& m : sends) check_device(m.buffer);
  for (const Message& m : recvs) check_device(m.buffer);
  check_peers(sends, size_, "to");
  check_peers(recvs, size_, "from");
  return begin({.call = {.local_bytes = total_bytes(sends), .kind = Collective::kExchange},
                .schedule = schedule_exchange(rank_, sends, recvs),
                .to = stated(sends, rank_, size_),
                .from = stated(recvs, rank_, size_)});
}

Pending ScheduledCommunicator::shift(const ShiftArgs& args, Stream&) {
  check_device(args.send);
  check_device(args.recv);
  const int offset = (args.offset % size_ + size_) % size_;
  const int to = (rank_ + offset) % size_, from = (rank_ - offset + size_) % size_;
  const std::array<Message, 1> sends{{{.peer = to, .buffer = args.send}}};
  const std::array<Message, 1> recvs{{{.peer = from, .buffer = args.recv}}};
  Plan plan{
      .call = {.detail = offset, .local_bytes = args.send.bytes(), .kind = Collective::kShift},
      .schedule = schedule_exchange(rank_, sends, recvs)};
  if (offset != 0) {
    plan.to = {{to, static_cast<std::int64_t>(args.send.bytes())}};
    plan.from = {{from, static_cast<std::int64_t>(args.recv.bytes())}};
  }
  return begin(std::move(plan));
}

Pending ScheduledCommunicator::all_reduce(Tensor buffer, ReduceOp op, Stream&) {
  check_device(buffer);
  FARSPAN_CHECK(is_reducible(buffer.dtype), "all_reduce of {}", buffer.to_string());
  return begin({.call = {.bytes = buffer.bytes(),
                         .local_bytes = buffer.bytes(),
                         .kind = Collective::kAllReduce,
                         .dtype = buffer.dtype,
                         .op = op},
                .schedule = schedule_all_reduce(rank_, size_, buffer, op)});
}

Pending ScheduledCommunicator::all_gather(Tensor in, Tensor out, Stream&) {
  check_device(in);
  check_device(out);
  FARSPAN_CHECK(in.dtype == out.dtype && out.numel() == in.numel() * size_,
                "all_gather of {} into {} on {} ranks", in.to_string(), out.to_string(), size_);
  return begin({.call = {.bytes = in.bytes(),
                         .local_bytes = in.bytes(),
                         .kind = Collective::kAllGather,
                         .dtype = in.dtype},
                .schedule = schedule_all_gather(rank_, size_, in, out)});
}

Pending ScheduledCommunicator::reduce_scatter(Tensor in, Tensor out, ReduceOp op, Stream&) {
  check_device(in);
  check_device(out);
  FARSPAN_CHECK(is_reducible(in.dtype), "reduce_scatter of {}", in.to_string());
  FARSPAN_CHECK(in.dtype == out.dtype && in.numel() == out.numel() * size_,
                "reduce_scatter of {} into {} on {} ranks", in.to_string(), out.to_string(), size_);
  return begin({.call = {.bytes = in.bytes(),
                         .local_bytes = in.bytes(),
                         .kind = Collective::kReduceScatter,
                         .dtype = in.dtype,
                         .op = op},
                .schedule = schedule_reduce_scatter(rank_, size_, in, out, op)});
}

Pending ScheduledCommunicator::all_to_all(Tensor in, Tensor out, Stream&) {
  check_device(in);
  check_device(out);
  FARSPAN_CHECK(in.bytes() == out.bytes() && in.numel() % size_ == 0,
                "all_to_all of {} into {} on {} ranks", in.to_string(), out.to_string(), size_);
  FARSPAN_CHECK(in.data != out.data || in.empty() || size_ == 1, "all_to_all in place");
  return begin({.call = {.bytes = in.bytes(),
                         .local_bytes = in.bytes(),
                         .kind = Collective::kAllToAll,
                         .dtype = in.dtype},
                .schedule = schedule_all_to_all(rank_, size_, in, out)});
}

Pending ScheduledCommunicator::broadcast(Tensor buffer, int root, Stream&) {
  check_device(buffer);
  FARSPAN_CHECK(root >= 0 && root < size_, "broadcast from rank {} of {}", root, size_);
  return begin({.call = {.bytes = buffer.bytes(),
                         .detail = root,
                         .local_bytes = buffer.bytes(),
                         .kind = Collective::kBroadcast,
                         .dtype = buffer.dtype},
                .schedule = schedule_broadcast(rank_, size_, buffer, root)});
}

void ScheduledCommunicator::barrier() {
  begin({.call = {.kind = Collective::kBarrier}, .schedule = schedule_barrier(rank_, size_)})
      .wait();
}

LinkedCommunicator::LinkedCommunicator(std::shared_ptr<Link> link)
    : ScheduledCommunicator(link->rank(), link->size()), link_(std::move(link)) {}

Pending LinkedCommunicator::launch(Plan plan) {
  auto operation = std::make_shared<Operation>(link_, ledger_, std::move(plan));
  link_->engine().start(operation);
  auto handle = std::make_shared<Handle>(link_, std::move(operation));
  return Pending([handle = std::move(handle)] { handle->wait(); });
}

void LinkedCommunicator::check_device(const Tensor& tensor) const {
  FARSPAN_CHECK(tensor.device.kind == DeviceKind::kCpu || tensor.empty(),
                "the {} transport moves host memory only", transport());
}

std::unique_ptr<Communicator> LinkedCommunicator::split(int color, int key) {
  SplitPlace mine{.color = color, .key = key};
  std::vector<SplitPlace> places(static_cast<std::size_t>(size()));
  const auto bytes = static_cast<std::int64_t>(sizeof(SplitPlace));
  const Tensor in = host_tensor(reinterpret_cast<std::uint8_t*>(&mine), {bytes});
  const Tensor out = host_tensor(reinterpret_cast<std::uint8_t*>(places.data()), {bytes * size()});
  begin({.call = {.kind = Collective::kSplit},
         .schedule = schedule_all_gather(rank(), size(), in, out)})
      .wait();
  return std::make_unique<LinkedCommunicator>(link_->split(places, sequence_));
}

std::vector<int> split_members(std::span<const SplitPlace> places, int rank) {
  const int color = places[static_cast<std::size_t>(rank)].color;
  std::vector<int> members;
  for (std::size_t r = 0; r < places.size(); ++r)
    if (places[r].color == color) members.push_back(static_cast<int>(r));
  std::stable_sort(members.begin(), members.end(), [&](int a, int b) {
    return places[static_cast<std::size_t>(a)].key < places[static_cast<std::size_t>(b)].key;
  });
  return members;
}

}  // namespace farspan
