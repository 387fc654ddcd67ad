#include "comm/nccl.h"

#include <utility>

#include "comm/nccl_connection.h"
#include "comm/operation.h"
#include "comm/schedule.h"

namespace farspan {
namespace {

using nccl::Connection;
using nccl::Family;
using nccl::Group;

// What NCCL is asked for, once it is sure that NCCL does it rightly.
struct Reduction {
  ncclDataType_t type = ncclUint8;
  ncclRedOp_t op = ncclSum;

  Reduction(DType dtype, ReduceOp wanted) {
    switch (dtype) {
      case DType::kF32:
        type = ncclFloat32;
        break;
      case DType::kF64:
        type = ncclFloat64;
        break;
      case DType::kI32:
        type = ncclInt32;
        break;
      case DType::kI64:
        type = ncclInt64;
        break;
      default:
        FARSPAN_CHECK(false, "NCCL reduction of {}: reduce in f32", name_of(dtype));
    }
    if (wanted == ReduceOp::kSum) return;
    FARSPAN_CHECK(dtype == DType::kI32 || dtype == DType::kI64,
                  "NCCL's max and min of {} lose a NaN", name_of(dtype));
    op = wanted == ReduceOp::kMax ? ncclMax : ncclMin;
  }
};

std::size_t count(const Tensor& t) { return static_cast<std::size_t>(t.numel()); }

// An operation under way. Given up without wait(), which only an unwinding exception does, it takes
// the rank's communicators with it: its kernel might wait for peers for ever, and with it whatever
// frees memory of this GPU.
class InFlight {
 public:
  InFlight(std::shared_ptr<Family> family, cudaStream_t compute)
      : family_(std::move(family)), compute_(compute) {}
  InFlight(const InFlight&) = delete;
  InFlight& operator=(const InFlight&) = delete;
  ~InFlight() {
    if (!waited_) family_->abort("an operation was given up after an error of this rank");
  }
  void started_on(cudaStream_t queue) { done_.record(queue); }
  void wait() {
    done_.before(compute_);
    waited_ = true;
  }

 private:
  std::shared_ptr<Family> family_;
  cudaStream_t compute_;
  nccl::Event done_;
  bool waited_ = false;
};

class NcclCommunicator final : public Communicator {
 public:
  // `owned`: the bootstrap, where this object is to keep it.
  NcclCommunicator(Communicator& bootstrap, std::unique_ptr<Communicator> owned, Connection made)
      : bootstrap_(bootstrap), owned_(std::move(owned)), connection_(std::move(made)) {}
  ~NcclCommunicator() override {
    const bool unwinding = std::uncaught_exceptions() > exceptions_before_;
    if (unwinding || connection_.family->aborted())
      connection_.channel->abort();
    else
      connection_.channel->close();
  }

  int rank() const override { return bootstrap_.rank(); }
  int size() const override { return bootstrap_.size(); }
  std::string_view transport() const override { return "nccl"; }

  Pending exchange(std::span<const Message> sends, std::span<const Message> recvs,
                   Stream& stream) override {
    if (on_host(stream)) return bootstrap_.exchange(sends, recvs, stream);
    return point_to_point({.kind = Collective::kExchange}, sends, recvs, stream);
  }

  Pending shift(const ShiftArgs& args, Stream& stream) override {
    if (on_host(stream)) return bootstrap_.shift(args, stream);
    const auto peer = [&](int offset) { return ((rank() + offset) % size() + size()) % size(); };
    const Message send{peer(args.offset), args.send}, recv{peer(-args.offset), args.recv};
    return point_to_point({.kind = Collective::kShift}, {&send, 1}, {&recv, 1}, stream);
  }

  Pending all_reduce(Tensor buffer, ReduceOp op, Stream& stream) override {
    if (on_host(stream)) return bootstrap_.all_reduce(buffer, op, stream);
    check_device(buffer);
    const Reduction how(buffer.dtype, op);
    return run({.local_bytes = buffer.bytes(), .kind = Collective::kAllReduce},
               schedule_all_reduce(rank(), size(), buffer, op), stream, [&](ncclComm_t comm) {
                 if (buffer.empty()) return;
                 FARSPAN_NCCL(ncclAllReduce(buffer.data, buffer.data, count(buffer), how.type,
                                            how.op, comm, queue()));
               });
  }

  Pending all_gather(Tensor in, Tensor out, Stream& stream) override {
    if (on_host(stream)) return bootstrap_.all_gather(in, out, stream);
    check_device(in);
    check_device(out);
    FARSPAN_CHECK(in.dtype == out.dtype && out.numel() == in.numel() * size(),
                  "all_gather of {} into {} on {} ranks", in.to_string(), out.to_string(), size());
    return run(
        {.local_bytes = in.bytes(), .kind = Collective::kAllGather},
        schedule_all_gather(rank(), size(), in, out), stream, [&](ncclComm_t comm) {
          if (in.empty()) return;
          FARSPAN_NCCL(ncclAllGather(in.data, out.data, in.bytes(), ncclUint8, comm, queue()));
        });
  }

  Pending reduce_scatter(Tensor in, Tensor out, ReduceOp op, Stream& stream) override {
    if (on_host(stream)) return bootstrap_.reduce_scatter(in, out, op, stream);
    check_device(in);
    check_device(out);
    FARSPAN_CHECK(in.dtype == out.dtype && in.numel() == out.numel() * size(),
                  "reduce_scatter of {} into {} on {} ranks", in.to_string(), out.to_string(),
                  size());
    const Reduction how(in.dtype, op);
    return run({.local_bytes = in.bytes(), .kind = Collective::kReduceScatter},
               schedule_reduce_scatter(rank(), size(), in, out, op), stream, [&](ncclComm_t comm) {
                 if (out.empty()) return;
                 FARSPAN_NCCL(ncclReduceScatter(in.data, out.data, count(out), how.type, how.op,
                                                comm, queue()));
               });
  }

  Pending all_to_all(Tensor in, Tensor out, Stream& stream) override {
    if (on_host(stream)) return bootstrap_.all_to_all(in, out, stream);
    check_device(in);
    check_device(out);
    FARSPAN_CHECK(in.bytes() == out.bytes() && in.numel() % size() == 0,
                  "all_to_all of {} into {} on {} ranks", in.to_string(), out.to_string(), size());
    FARSPAN_CHECK(in.data != out.data || in.empty() || size() == 1, "all_to_all in place");
    std::vector<Message> sends, recvs;
    const std::int64_t block = static_cast<std::int64_t>(in.bytes()) / size();
    const auto part = [&](const Tensor& t, int peer) {
      return Message{peer, {t.data + block * peer, DType::kU8, Shape{block}, t.device}};
    };
    for (int peer = 0; peer < size() && block > 0; ++peer) {
      sends.push_back(part(in, peer));
      recvs.push_back(part(out, peer));
    }
    return point_to_point({.kind = Collective::kAllToAll}, sends, recvs, stream);
  }

  Pending broadcast(Tensor buffer, int root, Stream& stream) override {
    if (on_host(stream)) return bootstrap_.broadcast(buffer, root, stream);
    check_device(buffer);
    FARSPAN_CHECK(root >= 0 && root < size(), "broadcast from rank {} of {}", root, size());
    return run({.local_bytes = buffer.bytes(), .kind = Collective::kBroadcast},
               schedule_broadcast(rank(), size(), buffer, root), stream, [&](ncclComm_t comm) {
                 if (buffer.empty()) return;
                 FARSPAN_NCCL(ncclBroadcast(buffer.data, buffer.data, buffer.bytes(), ncclUint8,
                                            root, comm, queue()));
               });
  }

  void barrier() override {
    note({.kind = Collective::kBarrier});
    drain();
    bootstrap_.barrier();
  }

  std::unique_ptr<Communicator> split(int color, int key) override {
    note({.kind = Collective::kSplit});
    return adopt(bootstrap_.split(color, key));
  }
  std::unique_ptr<Communicator> split_by(
      const std::function<SplitPlace(int rank)>& place) override {
    note({.kind = Collective::kSplit});
    return adopt(bootstrap_.split_by(place));
  }

  void abort(ExitCode code, std::string_view reason) noexcept override {
    // The other ranks first: NCCL's abort waits for this GPU's kernels to see it.
    bootstrap_.abort(code, reason);
    connection_.family->abort(std::string("the job was ended") + (reason.empty() ? "" : ": ") +
                              std::string(reason));
  }

  bool failed() const override { return bootstrap_.failed() || connection_.family->aborted(); }

  CommCounters counters() const override { return ledger_.counters(); }
  void reset_counters() override { ledger_.reset_counters(); }
  std::string last_operation() const override { return ledger_.last_operation(); }

 private:
  cudaStream_t queue() const { return connection_.queue->get(); }

  // A stream of the host: so are the tensors, which a host transport moves.
  static bool on_host(const Stream& stream) { return stream.native_handle() == nullptr; }

  void check_device(const Tensor& t) const {
    FARSPAN_CHECK(t.empty() || t.device == (DeviceId{DeviceKind::kCuda, connection_.device}),
                  "the nccl transport of device {} was given {} elsewhere", connection_.device,
                  t.to_string());
  }

  void note(Call call) {
    call.sequence = ++sequence_;
    ledger_.began(call);
  }

  void count_bytes(Collective kind, Schedule& schedule) {
    transfers_.clear();
    for (int k = 0; schedule.begin_phase(k, nullptr, transfers_); ++k) {
      for (const Transfer& t : transfers_)
        if (t.send) ledger_.sent(kind, t.bytes);
      transfers_.clear();
    }
  }

  // Enqueues an operation after what `stream` holds; wait() orders `stream` after it.
  template <typename Enqueue>
  Pending run(const Call& call, std::unique_ptr<Schedule> schedule, Stream& stream,
              Enqueue&& enqueue) {
    connection_.family->check();
    auto* const compute = static_cast<cudaStream_t>(stream.native_handle());
    note(call);
    nccl::Event().order(compute, queue());
    auto flight = std::make_shared<InFlight>(connection_.family, compute);
    connection_.channel->use(enqueue);
    count_bytes(call.kind, *schedule);
    flight->started_on(queue());
    return Pending([flight = std::move(flight)] { flight->wait(); });
  }

  Pending point_to_point(Call call, std::span<const Message> sends, std::span<const Message> recvs,
                         Stream& stream) {
    for (const Message& m : sends) {
      check_message(m);
      call.local_bytes += m.buffer.bytes();
    }
    for (const Message& m : recvs) check_message(m);
    const Tensor from_self = own(sends), to_self = own(recvs);
    FARSPAN_CHECK(from_self.bytes() == to_self.bytes(),
                  "rank {} sends itself {} bytes and expects {}", rank(), from_self.bytes(),
                  to_self.bytes());
    return run(call, schedule_exchange(rank(), sends, recvs), stream, [&](ncclComm_t comm) {
      if (!to_self.empty() && from_self.data != to_self.data)
        FARSPAN_NCCL(cudaMemcpyAsync(to_self.data, from_self.data, to_self.bytes(),
                                     cudaMemcpyDeviceToDevice, queue()));
      Group group;
      for (const Message& m : sends)
        if (m.peer != rank() && !m.buffer.empty())
          FARSPAN_NCCL(ncclSend(m.buffer.data, m.buffer.bytes(), ncclUint8, m.peer, comm, queue()));
      for (const Message& m : recvs)
        if (m.peer != rank() && !m.buffer.empty())
          FARSPAN_NCCL(ncclRecv(m.buffer.data, m.buffer.bytes(), ncclUint8, m.peer, comm, queue()));
      group.end();
    });
  }

  void check_message(const Message& m) const {
    check_device(m.buffer);
    FARSPAN_CHECK(m.peer >= 0 && m.peer < size(), "message with rank {} of {}", m.peer, size());
  }

  // The message of this rank to itself, which NCCL need not see.
  Tensor own(std::span<const Message> messages) const {
    for (const Message& m : messages)
      if (m.peer == rank()) return m.buffer;
    return {};
  }

  // Waits on the host for what this communicator has been given, and sees failures meanwhile.
  void drain() {
    for (;;) {
      const cudaError_t status = cudaStreamQuery(queue());
      if (status != cudaErrorNotReady) return nccl::check(status, "cudaStreamQuery");
      (void)cudaGetLastError();
      connection_.channel->use([](ncclComm_t) {});
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }

  std::unique_ptr<Communicator> adopt(std::unique_ptr<Communicator> hosts) {
    Connection made = nccl::connect(*hosts, connection_.device, connection_.family);
    Communicator& bootstrap = *hosts;
    return std::make_unique<NcclCommunicator>(bootstrap, std::move(hosts), std::move(made));
  }

  Communicator& bootstrap_;
  std::unique_ptr<Communicator> owned_;
  Connection connection_;  // before owned_ in the order of destruction
  Ledger ledger_;
  std::uint64_t sequence_ = 0;
  std::vector<Transfer> transfers_;  // of count_bytes, kept for its memory
  int exceptions_before_ = std::uncaught_exceptions();
};

}  // namespace

bool nccl_is_built() { return true; }

std::string nccl_version() {
  int version = 0;
  FARSPAN_NCCL(ncclGetVersion(&version));
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

std::unique_ptr<Communicator> make_nccl_communicator(Communicator& bootstrap, int device) {
  return std::make_unique<NcclCommunicator>(
      bootstrap, nullptr,
      nccl::connect(bootstrap, device, std::make_shared<nccl::Family>(bootstrap)));
}

}  // namespace farspan
