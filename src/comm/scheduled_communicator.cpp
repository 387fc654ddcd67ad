#include "comm/scheduled_communicator.h"

#include <algorithm>
#include <array>
#include <type_traits>
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
    operation_->arrive();
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

Work messages(int rank, std::span<const Message> sends, std::span<const Message> recvs) {
  Work work{.only_messages = true};
  std::vector<int> peers;
  for (const auto& [list, outgoing] : {std::pair{sends, true}, {recvs, false}})
    for (const Message& m : list) {
      work.uses.push_back({.tensor = m.buffer, .reads = outgoing, .writes = !outgoing});
      work.only_messages = work.only_messages && m.peer != rank;
      peers.push_back(m.peer);
    }
  work.schedule = [rank, peers, num_sends = sends.size()](std::span<const Tensor> t) {
    std::vector<Message> all;
    for (std::size_t i = 0; i < t.size(); ++i) all.push_back({.peer = peers[i], .buffer = t[i]});
    const std::span<const Message> view(all);
    return schedule_exchange(rank, view.first(num_sends), view.subspan(num_sends));
  };
  return work;
}

std::vector<Work::Use> from_to(const Tensor& in, const Tensor& out) {
  return {{.tensor = in, .reads = true}, {.tensor = out, .writes = true}};
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

Pending ScheduledCommunicator::begin(Plan plan, const Work& work, Stream& stream) {
  for (const Work::Use& use : work.uses) check_device(use.tensor);
  plan.schedule = place(work, stream);
  return begin(std::move(plan));
}

std::unique_ptr<Schedule> ScheduledCommunicator::place_as_it_is(const Work& work) {
  std::vector<Tensor> tensors;
  tensors.reserve(work.uses.size());
  for (const Work::Use& use : work.uses) tensors.push_back(use.tensor);
  return work.schedule(tensors);
}

std::unique_ptr<Schedule> ScheduledCommunicator::place(const Work& work, Stream&) {
  return place_as_it_is(work);
}

Pending ScheduledCommunicator::exchange(std::span<const Message> sends,
                                        std::span<const Message> recvs, Stream& stream) {
  check_peers(sends, size_, "to");
  check_peers(recvs, size_, "from");
  return begin({.call = {.local_bytes = total_bytes(sends), .kind = Collective::kExchange},
                .to = stated(sends, rank_, size_),
                .from = stated(recvs, rank_, size_)},
               messages(rank_, sends, recvs), stream);
}

Pending ScheduledCommunicator::shift(const ShiftArgs& args, Stream& stream) {
  const int offset = (args.offset % size_ + size_) % size_;
  const int to = (rank_ + offset) % size_, from = (rank_ - offset + size_) % size_;
  const std::array<Message, 1> sends{{{.peer = to, .buffer = args.send}}};
  const std::array<Message, 1> recvs{{{.peer = from, .buffer = args.recv}}};
  Plan plan{
      .call = {.detail = offset, .local_bytes = args.send.bytes(), .kind = Collective::kShift}};
  if (offset != 0) {
    plan.to = {{to, static_cast<std::int64_t>(args.send.bytes())}};
    plan.from = {{from, static_cast<std::int64_t>(args.recv.bytes())}};
  }
  return begin(std::move(plan), messages(rank_, sends, recvs), stream);
}

Pending ScheduledCommunicator::all_reduce(Tensor buffer, ReduceOp op, Stream& stream) {
  FARSPAN_CHECK(is_reducible(buffer.dtype), "all_reduce of {}", buffer.to_string());
  const auto schedule = [op, rank = rank_, size = size_](std::span<const Tensor> t) {
    return schedule_all_reduce(rank, size, t[0], op);
  };
  // Pieces of a multiple of P elements have the borders of blocks that the whole would have.
  return begin({.call = {.bytes = buffer.bytes(),
                         .local_bytes = buffer.bytes(),
                         .kind = Collective::kAllReduce,
                         .dtype = buffer.dtype,
                         .op = op}},
               {.uses = {{.tensor = buffer, .reads = true, .writes = true}},
                .schedule = schedule,
                .grain = size_,
                .in_place = true},
               stream);
}

Pending ScheduledCommunicator::all_gather(Tensor in, Tensor out, Stream& stream) {
  FARSPAN_CHECK(in.dtype == out.dtype && out.numel() == in.numel() * size_,
                "all_gather of {} into {} on {} ranks", in.to_string(), out.to_string(), size_);
  const auto schedule = [rank = rank_, size = size_](std::span<const Tensor> t) {
    return schedule_all_gather(rank, size, t[0], t[1]);
  };
  return begin({.call = {.bytes = in.bytes(),
                         .local_bytes = in.bytes(),
                         .kind = Collective::kAllGather,
                         .dtype = in.dtype}},
               {.uses = from_to(in, out), .schedule = schedule}, stream);
}

Pending ScheduledCommunicator::reduce_scatter(Tensor in, Tensor out, ReduceOp op, Stream& stream) {
  FARSPAN_CHECK(is_reducible(in.dtype), "reduce_scatter of {}", in.to_string());
  FARSPAN_CHECK(in.dtype == out.dtype && in.numel() == out.numel() * size_,
                "reduce_scatter of {} into {} on {} ranks", in.to_string(), out.to_string(), size_);
  const auto schedule = [op, rank = rank_, size = size_](std::span<const Tensor> t) {
    return schedule_reduce_scatter(rank, size, t[0], t[1], op);
  };
  return begin({.call = {.bytes = in.bytes(),
                         .local_bytes = in.bytes(),
                         .kind = Collective::kReduceScatter,
                         .dtype = in.dtype,
                         .op = op}},
               {.uses = from_to(in, out), .schedule = schedule}, stream);
}

Pending ScheduledCommunicator::all_to_all(Tensor in, Tensor out, Stream& stream) {
  FARSPAN_CHECK(in.bytes() == out.bytes() && in.numel() % size_ == 0,
                "all_to_all of {} into {} on {} ranks", in.to_string(), out.to_string(), size_);
  FARSPAN_CHECK(in.data != out.data || in.empty() || size_ == 1, "all_to_all in place");
  const auto schedule = [rank = rank_, size = size_](std::span<const Tensor> t) {
    return schedule_all_to_all(rank, size, t[0], t[1]);
  };
  return begin({.call = {.bytes = in.bytes(),
                         .local_bytes = in.bytes(),
                         .kind = Collective::kAllToAll,
                         .dtype = in.dtype}},
               {.uses = from_to(in, out), .schedule = schedule}, stream);
}

Pending ScheduledCommunicator::broadcast(Tensor buffer, int root, Stream& stream) {
  FARSPAN_CHECK(root >= 0 && root < size_, "broadcast from rank {} of {}", root, size_);
  const auto schedule = [root, rank = rank_, size = size_](std::span<const Tensor> t) {
    return schedule_broadcast(rank, size, t[0], root);
  };
  return begin({.call = {.bytes = buffer.bytes(),
                         .detail = root,
                         .local_bytes = buffer.bytes(),
                         .kind = Collective::kBroadcast,
                         .dtype = buffer.dtype}},
               {.uses = {{.tensor = buffer, .reads = rank_ == root, .writes = rank_ != root}},
                .schedule = schedule,
                .in_place = true},
               stream);
}

void ScheduledCommunicator::barrier() {
  begin({.call = {.kind = Collective::kBarrier}, .schedule = schedule_barrier(rank_, size_)})
      .wait();
}

LinkedCommunicator::LinkedCommunicator(std::shared_ptr<Link> link, std::shared_ptr<Staging> staging)
    : ScheduledCommunicator(link->rank(), link->size()),
      link_(std::move(link)),
      staging_(std::move(staging)) {}

Pending LinkedCommunicator::launch(Plan plan) {
  auto operation = std::make_shared<Operation>(link_, ledger_, std::move(plan));
  link_->engine().start(operation);
  auto handle = std::make_shared<Handle>(link_, std::move(operation));
  return Pending([handle = std::move(handle)] { handle->wait(); });
}

void LinkedCommunicator::check_device(const Tensor& tensor) const {
  if (tensor.empty() || tensor.device.kind == DeviceKind::kCpu) return;
  FARSPAN_CHECK(staging_ != nullptr, "this {} communicator moves host memory only: {}", transport(),
                tensor.to_string());
  FARSPAN_CHECK(tensor.device == staging_->device().id(), "{} is on another device",
                tensor.to_string());
}

std::unique_ptr<Schedule> LinkedCommunicator::place(const Work& work, Stream& stream) {
  const bool on_host = std::all_of(work.uses.begin(), work.uses.end(), [](const Work::Use& use) {
    return use.tensor.empty() || use.tensor.device.kind == DeviceKind::kCpu;
  });
  if (on_host || (size() == 1 && work.in_place)) return place_as_it_is(work);
  return staging_->schedule(work, stream, work.only_messages && link_->moves_device_memory());
}

std::unique_ptr<Link> LinkedCommunicator::split_link(int color, int key) {
  SplitPlace mine{.color = color, .key = key};
  std::vector<SplitPlace> places(static_cast<std::size_t>(size()));
  const auto bytes = static_cast<std::int64_t>(sizeof(SplitPlace));
  const Tensor in = host_tensor(reinterpret_cast<std::uint8_t*>(&mine), {bytes});
  const Tensor out = host_tensor(reinterpret_cast<std::uint8_t*>(places.data()), {bytes * size()});
  begin({.call = {.kind = Collective::kSplit},
         .schedule = schedule_all_gather(rank(), size(), in, out)})
      .wait();
  return link_->split(places, sequence_);
}

std::unique_ptr<Communicator> LinkedCommunicator::split(int color, int key) {
  std::shared_ptr<Staging> staging;
  if (staging_ != nullptr)
    staging = std::make_shared<Staging>(staging_->device(), staging_->options());
  return std::make_unique<LinkedCommunicator>(split_link(color, key), std::move(staging));
}

std::unique_ptr<Communicator> LinkedCommunicator::for_device(Device& device,
                                                             StagingOptions options) {
  auto staging = std::make_shared<Staging>(device, options);
  return std::make_unique<LinkedCommunicator>(split_link(0, rank()), std::move(staging));
}

namespace {

template <typename Hosts>
auto& linked(Hosts& hosts) {
  using Linked =
      std::conditional_t<std::is_const_v<Hosts>, const LinkedCommunicator, LinkedCommunicator>;
  auto* const found = dynamic_cast<Linked*>(&hosts);
  FARSPAN_CHECK(found != nullptr, "a {} communicator cannot stage", hosts.transport());
  return *found;
}

}  // namespace

std::unique_ptr<Communicator> make_staged_communicator(Communicator& hosts, Device& device,
                                                       StagingOptions options) {
  return linked(hosts).for_device(device, options);
}

bool moves_device_memory(const Communicator& hosts) { return linked(hosts).moves_device_memory(); }

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
