#include "comm/nccl.h"

#include <cuda_runtime.h>
#include <nccl.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>
#include <utility>

#include "comm/agree.h"
#include "comm/operation.h"
#include "comm/schedule.h"

namespace farspan {
namespace {

[[noreturn]] void fail(const std::string& reason, const char* call) {
  throw Error(ExitCode::kCommunication,
              {.what = fmt::format("NCCL: {}", reason),
               .where = call,
               .fix = "run with NCCL_DEBUG=INFO to see more; every rank needs a GPU of its own"});
}

void check(ncclResult_t status, const char* call) {
  if (status == ncclSuccess) return;
  const char* detail = ncclGetLastError(nullptr);
  const bool more = detail != nullptr && *detail != '\0';
  fail(fmt::format("{}{}{}", ncclGetErrorString(status), more ? ": " : "", more ? detail : ""),
       call);
}

void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();  // else the next kernel's launch would report it
  fail(cudaGetErrorString(status), call);
}

#define FARSPAN_NCCL(call) check((call), #call)

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

// CUDA lets both be destroyed while work that uses them is under way.
class Event {
 public:
  Event() { FARSPAN_NCCL(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming)); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() { cudaEventDestroy(event_); }
  // The work that `from` holds now comes before what `to` is given from now on.
  void order(cudaStream_t from, cudaStream_t to) {
    record(from);
    before(to);
  }
  void record(cudaStream_t queue) { FARSPAN_NCCL(cudaEventRecord(event_, queue)); }
  void before(cudaStream_t queue) { FARSPAN_NCCL(cudaStreamWaitEvent(queue, event_, 0)); }

 private:
  cudaEvent_t event_ = nullptr;
};

class Queue {
 public:
  Queue() { FARSPAN_NCCL(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;
  ~Queue() { cudaStreamDestroy(stream_); }
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

// Calls between ncclGroupStart and ncclGroupEnd are one operation. An exception must not leave this
// thread inside the group.
class Group {
 public:
  Group() { FARSPAN_NCCL(ncclGroupStart()); }
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;
  ~Group() {
    if (!ended_) ncclGroupEnd();
  }
  void end() {
    ended_ = true;
    FARSPAN_NCCL(ncclGroupEnd());
  }

 private:
  bool ended_ = false;
};

// One ncclComm_t: used by its rank's thread, aborted by any. Unless closed it is aborted in the
// end, because closing waits for the other ranks to close theirs.
class Channel {
 public:
  Channel(int rank, int size, const ncclUniqueId& id) {
    ncclComm_t comm = nullptr;
    FARSPAN_NCCL(ncclCommInitRank(&comm, size, id, rank));
    comm_ = comm;
  }
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;
  ~Channel() { abort(); }

  // Calls body(comm) while no other thread can free it. Throws when the communicator has failed.
  template <typename Body>
  void use(Body&& body) {
    const std::lock_guard lock(calls_);
    ncclComm_t comm = comm_.load();
    if (comm == nullptr) fail("the communicator was aborted", "NCCL operation");
    ncclResult_t state = ncclSuccess;
    FARSPAN_NCCL(ncclCommGetAsyncError(comm, &state));
    if (state != ncclInProgress) check(state, "ncclCommGetAsyncError");
    body(comm);
  }

  void close() noexcept {
    const std::lock_guard lock(calls_);
    if (ncclComm_t comm = comm_.exchange(nullptr)) ncclCommDestroy(comm);
  }

  void abort() noexcept {
    // Host calls of NCCL are short unless they wait for a rank that is gone. Then they end by this
    // very abort, which NCCL allows beside them.
    const std::unique_lock lock(calls_, std::chrono::seconds(2));
    if (ncclComm_t comm = comm_.exchange(nullptr)) ncclCommAbort(comm);
  }

 private:
  std::timed_mutex calls_;
  std::atomic<ncclComm_t> comm_{nullptr};
};

// All channels of one rank, the world's and those split from it: they fail together.
class Family {
 public:
  void add(const std::shared_ptr<Channel>& channel) {
    const std::lock_guard lock(mutex_);
    if (aborted_) fail("the job was aborted", "split");
    std::erase_if(channels_, [](const auto& known) { return known.expired(); });
    channels_.push_back(channel);
  }

  bool aborted() const { return aborted_.load(); }

  void abort() noexcept {
    std::vector<std::thread> threads;
    {
      const std::lock_guard lock(mutex_);
      aborted_ = true;
      // Side by side: a kernel of one may wait on this GPU for one of another.
      for (const std::weak_ptr<Channel>& known : channels_)
        if (auto channel = known.lock()) start(threads, std::move(channel));
    }
    for (std::thread& thread : threads) thread.join();
  }

 private:
  static void start(std::vector<std::thread>& threads, std::shared_ptr<Channel> channel) noexcept {
    try {
      threads.emplace_back([channel] { channel->abort(); });
    } catch (const std::exception&) {  // no memory for a thread
      channel->abort();
    }
  }

  std::mutex mutex_;
  std::vector<std::weak_ptr<Channel>> channels_;
  std::atomic<bool> aborted_{false};
};

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
    if (!waited_) family_->abort();
  }
  void started_on(cudaStream_t queue) { done_.record(queue); }
  void wait() {
    done_.before(compute_);
    waited_ = true;
  }

 private:
  std::shared_ptr<Family> family_;
  cudaStream_t compute_;
  Event done_;
  bool waited_ = false;
};

struct Connection {
  int device = 0;
  std::shared_ptr<Family> family;
  std::shared_ptr<Channel> channel;
  std::unique_ptr<Queue> queue;
};

// Collective over `bootstrap`.
Connection connect(Communicator& bootstrap, int device, std::shared_ptr<Family> family) {
  Connection made{.device = device, .family = std::move(family)};
  ncclUniqueId id{};
  together(bootstrap, [&] {
    FARSPAN_NCCL(cudaSetDevice(device));
    made.queue = std::make_unique<Queue>();
    if (bootstrap.rank() == 0) FARSPAN_NCCL(ncclGetUniqueId(&id));
  });
  Stream host;
  auto* const bytes = reinterpret_cast<std::uint8_t*>(&id);
  bootstrap.broadcast(host_tensor(bytes, {static_cast<std::int64_t>(sizeof id)}), 0, host).wait();
  together(bootstrap, [&] {
    made.channel = std::make_shared<Channel>(bootstrap.rank(), bootstrap.size(), id);
    made.family->add(made.channel);
  });
  return made;
}

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
    return point_to_point({.kind = Collective::kExchange}, sends, recvs, stream);
  }

  Pending shift(const ShiftArgs& args, Stream& stream) override {
    const auto peer = [&](int offset) { return ((rank() + offset) % size() + size()) % size(); };
    const Message send{peer(args.offset), args.send}, recv{peer(-args.offset), args.recv};
    return point_to_point({.kind = Collective::kShift}, {&send, 1}, {&recv, 1}, stream);
  }

  Pending all_reduce(Tensor buffer, ReduceOp op, Stream& stream) override {
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
    connection_.family->abort();
  }

  CommCounters counters() const override { return ledger_.counters(); }
  void reset_counters() override { ledger_.reset_counters(); }
  std::string last_operation() const override { return ledger_.last_operation(); }

 private:
  cudaStream_t queue() const { return connection_.queue->get(); }

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
    auto* const compute = static_cast<cudaStream_t>(stream.native_handle());
    FARSPAN_CHECK(compute != nullptr, "{} on a stream that is not CUDA's", name_of(call.kind));
    note(call);
    Event().order(compute, queue());
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
      if (status != cudaErrorNotReady) return check(status, "cudaStreamQuery");
      (void)cudaGetLastError();
      connection_.channel->use([](ncclComm_t) {});
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }

  std::unique_ptr<Communicator> adopt(std::unique_ptr<Communicator> hosts) {
    Connection made = connect(*hosts, connection_.device, connection_.family);
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

std::unique_ptr<Communicator> make_nccl_communicator(Communicator& bootstrap, int device) {
  return std::make_unique<NcclCommunicator>(bootstrap, nullptr,
                                            connect(bootstrap, device, std::make_shared<Family>()));
}

}  // namespace farspan
