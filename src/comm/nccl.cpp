#include "comm/nccl.h"

#include <cuda_runtime.h>
#include <nccl.h>

#include <atomic>
#include <mutex>
#include <numeric>
#include <utility>

namespace farspan {
namespace {

[[noreturn]] void fail(const std::string& reason, const char* call) {
  throw Error(ExitCode::kCommunication,
              {.what = fmt::format("NCCL: {}", reason),
               .where = call,
               .fix = "run with NCCL_DEBUG=INFO; two ranks need two GPUs"});
}

void check(ncclResult_t status, const char* call) {
  if (status != ncclSuccess) fail(ncclGetErrorString(status), call);
}

void check(cudaError_t status, const char* call) {
  if (status != cudaSuccess) fail(cudaGetErrorString(status), call);
}

#define FARSPAN_NCCL(call) check((call), #call)

ncclDataType_t data_type(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return ncclFloat32;
    case DType::kBF16:
      return ncclBfloat16;
    case DType::kF64:
      return ncclFloat64;
    case DType::kI32:
      return ncclInt32;
    case DType::kI64:
      return ncclInt64;
    default:
      FARSPAN_CHECK(false, "NCCL reduction of {}", name_of(dtype));
  }
  return ncclUint8;
}

ncclRedOp_t reduction(ReduceOp op) {
  return op == ReduceOp::kSum ? ncclSum : op == ReduceOp::kMax ? ncclMax : ncclMin;
}

// An event that CUDA recycles with this object.
class Event {
 public:
  Event() { check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreate"); }
  Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() {
    if (event_ != nullptr) cudaEventDestroy(event_);
  }
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(Communicator& bootstrap, std::unique_ptr<Communicator> owned, ncclComm_t comm)
      : bootstrap_(bootstrap), owned_(std::move(owned)), comm_(comm) {
    FARSPAN_NCCL(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }
  ~NcclCommunicator() override {
    if (ncclComm_t comm = comm_.exchange(nullptr)) ncclCommDestroy(comm);
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  int rank() const override { return bootstrap_.rank(); }
  int size() const override { return bootstrap_.size(); }
  std::string_view transport() const override { return "nccl"; }

  Pending exchange(std::span<const Message> sends, std::span<const Message> recvs,
                   Stream& stream) override {
    std::int64_t bytes = 0;
    for (const Message& m : sends)
      if (m.peer != rank()) bytes += static_cast<std::int64_t>(m.buffer.bytes());
    return point_to_point(Collective::kExchange, bytes, sends, recvs, stream);
  }

  Pending shift(const ShiftArgs& args, Stream& stream) override {
    const auto peer = [&](int offset) { return ((rank() + offset) % size() + size()) % size(); };
    const Message send{peer(args.offset), args.send}, recv{peer(-args.offset), args.recv};
    const bool self = send.peer == rank();
    return point_to_point(Collective::kShift,
                          self ? 0 : static_cast<std::int64_t>(args.send.bytes()), {&send, 1},
                          {&recv, 1}, stream);
  }

  Pending all_reduce(Tensor buffer, ReduceOp op, Stream& stream) override {
    const auto n = static_cast<std::int64_t>(buffer.bytes());
    return run(Collective::kAllReduce, 2 * n * (size() - 1) / size(), stream, [&] {
      FARSPAN_NCCL(ncclAllReduce(buffer.data, buffer.data, count(buffer), data_type(buffer.dtype),
                                 reduction(op), comm(), stream_));
    });
  }

  Pending all_gather(Tensor in, Tensor out, Stream& stream) override {
    FARSPAN_CHECK(out.bytes() == in.bytes() * static_cast<std::size_t>(size()));
    return run(
        Collective::kAllGather, static_cast<std::int64_t>(in.bytes()) * (size() - 1), stream, [&] {
          FARSPAN_NCCL(ncclAllGather(in.data, out.data, in.bytes(), ncclUint8, comm(), stream_));
        });
  }

  Pending reduce_scatter(Tensor in, Tensor out, ReduceOp op, Stream& stream) override {
    FARSPAN_CHECK(in.numel() == out.numel() * size());
    return run(Collective::kReduceScatter, static_cast<std::int64_t>(out.bytes()) * (size() - 1),
               stream, [&] {
                 FARSPAN_NCCL(ncclReduceScatter(in.data, out.data, count(out), data_type(in.dtype),
                                                reduction(op), comm(), stream_));
               });
  }

  Pending all_to_all(Tensor in, Tensor out, Stream& stream) override {
    FARSPAN_CHECK(in.bytes() == out.bytes() && in.numel() % size() == 0);
    const std::size_t block = in.bytes() / static_cast<std::size_t>(size());
    return run(Collective::kAllToAll, static_cast<std::int64_t>(block) * (size() - 1), stream, [&] {
      FARSPAN_NCCL(ncclGroupStart());
      for (int peer = 0; peer < size(); ++peer) {
        const std::size_t at = block * static_cast<std::size_t>(peer);
        FARSPAN_NCCL(ncclSend(in.data + at, block, ncclUint8, peer, comm(), stream_));
        FARSPAN_NCCL(ncclRecv(out.data + at, block, ncclUint8, peer, comm(), stream_));
      }
      FARSPAN_NCCL(ncclGroupEnd());
    });
  }

  Pending broadcast(Tensor buffer, int root, Stream& stream) override {
    const bool sends = rank() == root;
    return run(Collective::kBroadcast,
               sends ? static_cast<std::int64_t>(buffer.bytes()) * (size() - 1) : 0, stream, [&] {
                 FARSPAN_NCCL(ncclBroadcast(buffer.data, buffer.data, buffer.bytes(), ncclUint8,
                                            root, comm(), stream_));
               });
  }

  void barrier() override {
    note(Collective::kBarrier, 0);
    FARSPAN_NCCL(cudaStreamSynchronize(stream_));
    poll_errors();
    bootstrap_.barrier();
  }

  std::unique_ptr<Communicator> split(int color, int key) override {
    return split_with(color, key, bootstrap_.split(color, key));
  }
  std::unique_ptr<Communicator> split_by(
      const std::function<SplitPlace(int rank)>& place) override {
    const SplitPlace mine = place(rank());
    return split_with(mine.color, mine.key, bootstrap_.split_by(place));
  }

  void abort(ExitCode code, std::string_view reason) noexcept override {
    // ncclCommAbort ends kernels that wait for peers; destroying afterwards would hang.
    if (ncclComm_t comm = comm_.exchange(nullptr)) ncclCommAbort(comm);
    bootstrap_.abort(code, reason);
  }

  CommCounters counters() const override { return counters_; }
  void reset_counters() override { counters_ = {}; }
  std::string last_operation() const override {
    const std::lock_guard lock(mutex_);
    return last_operation_;
  }

 private:
  static std::size_t count(const Tensor& t) { return static_cast<std::size_t>(t.numel()); }

  ncclComm_t comm() const {
    ncclComm_t comm = comm_.load();
    if (comm == nullptr) fail("the communicator was aborted", "NCCL operation");
    return comm;
  }

  void poll_errors() const {
    ncclResult_t status = ncclSuccess;
    FARSPAN_NCCL(ncclCommGetAsyncError(comm(), &status));
    check(status, "ncclCommGetAsyncError");
  }

  void note(Collective collective, std::int64_t bytes) {
    auto& entry = counters_.by_collective[static_cast<std::size_t>(collective)];
    ++entry.calls;
    entry.bytes_sent += bytes;
    const std::lock_guard lock(mutex_);
    last_operation_ =
        fmt::format("{} #{}, {} bytes sent (nccl)", name_of(collective), ++sequence_, bytes);
  }

  // Starts `operation` on the NCCL stream after what `stream` holds; wait() orders `stream` after
  // it.
  template <typename Operation>
  Pending run(Collective collective, std::int64_t bytes, Stream& stream, Operation&& operation) {
    auto* const compute = static_cast<cudaStream_t>(stream.native_handle());
    poll_errors();
    note(collective, bytes);
    const Event ready;
    FARSPAN_NCCL(cudaEventRecord(ready.get(), compute));
    FARSPAN_NCCL(cudaStreamWaitEvent(stream_, ready.get(), 0));
    operation();
    auto done = std::make_shared<Event>();
    FARSPAN_NCCL(cudaEventRecord(done->get(), stream_));
    return Pending([done, compute] { FARSPAN_NCCL(cudaStreamWaitEvent(compute, done->get(), 0)); });
  }

  Pending point_to_point(Collective collective, std::int64_t bytes, std::span<const Message> sends,
                         std::span<const Message> recvs, Stream& stream) {
    return run(collective, bytes, stream, [&] {
      FARSPAN_NCCL(ncclGroupStart());
      for (const Message& m : sends)
        if (m.buffer.bytes() > 0)
          FARSPAN_NCCL(
              ncclSend(m.buffer.data, m.buffer.bytes(), ncclUint8, m.peer, comm(), stream_));
      for (const Message& m : recvs)
        if (m.buffer.bytes() > 0)
          FARSPAN_NCCL(
              ncclRecv(m.buffer.data, m.buffer.bytes(), ncclUint8, m.peer, comm(), stream_));
      FARSPAN_NCCL(ncclGroupEnd());
    });
  }

  std::unique_ptr<Communicator> split_with(int color, int key,
                                           std::unique_ptr<Communicator> hosts) {
    note(Collective::kSplit, 0);
    ncclComm_t part = nullptr;
    FARSPAN_NCCL(ncclCommSplit(comm(), color, key, &part, nullptr));
    Communicator& bootstrap = *hosts;
    return std::make_unique<NcclCommunicator>(bootstrap, std::move(hosts), part);
  }

  Communicator& bootstrap_;
  std::unique_ptr<Communicator> owned_;  // the bootstrap, where this object made it
  std::atomic<ncclComm_t> comm_;
  cudaStream_t stream_ = nullptr;
  CommCounters counters_;
  mutable std::mutex mutex_;  // last_operation_: read by the watchdog
  std::string last_operation_ = "none";
  std::int64_t sequence_ = 0;
};

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(Communicator& bootstrap, int device) {
  FARSPAN_NCCL(cudaSetDevice(device));
  ncclUniqueId id{};
  if (bootstrap.rank() == 0) FARSPAN_NCCL(ncclGetUniqueId(&id));
  Stream host;
  auto* const bytes = reinterpret_cast<std::uint8_t*>(&id);
  bootstrap.broadcast(host_tensor(bytes, {static_cast<std::int64_t>(sizeof id)}), 0, host).wait();
  ncclComm_t comm = nullptr;
  FARSPAN_NCCL(ncclCommInitRank(&comm, bootstrap.size(), id, bootstrap.rank()));
  return std::make_unique<NcclCommunicator>(bootstrap, nullptr, comm);
}

}  // namespace farspan
