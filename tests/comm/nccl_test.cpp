// NCCL on as many ranks as mpirun starts. Ranks share the GPUs of this machine: NCCL refuses two
// ranks on one GPU of one host, so each process says it is a host of its own (NCCL_HOSTID). Skipped
// with the reason where there is no GPU.
#include "comm/nccl.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <list>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "comm/agree.h"
#include "comm/factory.h"
#include "kernels/cuda/cuda_device.h"

namespace farspan {
namespace {

Communicator* hosts = nullptr;  // of this test program

class Nccl : public ::testing::Test {
 protected:
  void SetUp() override {
    const cuda::DeviceCount found = cuda::count_devices();
    if (found.devices == 0) GTEST_SKIP() << "no GPU on this machine: " << found.reason;
    const int index = hosts->rank() % found.devices;
    device_ = std::make_unique<cuda::CudaDevice>(index);
    stream_ = device_->make_stream();
    world_ = make_nccl_communicator(*hosts, index);
  }
  int rank() const { return world_->rank(); }
  int size() const { return world_->size(); }
  Communicator& world() { return *world_; }
  Stream& stream() { return *stream_; }
  Device& device() { return *device_; }

  template <typename T>
  Tensor put(const std::vector<T>& values) {
    const std::size_t bytes = values.size() * sizeof(T);
    buffers_.push_back(device_->allocate(std::max<std::size_t>(bytes, 1)));
    const Tensor t =
        buffers_.back().tensor(DTypeOf<T>::value, {static_cast<std::int64_t>(values.size())});
    device_->copy(t.data, reinterpret_cast<const std::byte*>(values.data()), bytes, stream());
    return t;
  }
  template <typename T>
  std::vector<T> get(const Tensor& t) {
    std::vector<T> values(static_cast<std::size_t>(t.numel()));
    device_->copy(reinterpret_cast<std::byte*>(values.data()), t.data, t.bytes(), stream());
    stream().synchronize();
    return values;
  }
  // first, first + 1, ...
  static std::vector<float> ramp(std::size_t n, int first) {
    std::vector<float> values(n);
    std::iota(values.begin(), values.end(), static_cast<float>(first));
    return values;
  }

 private:
  std::unique_ptr<cuda::CudaDevice> device_;
  std::unique_ptr<Stream> stream_;
  std::list<Buffer> buffers_;
  std::unique_ptr<Communicator> world_;
};

TEST_F(Nccl, Reductions) {
  const Tensor x = put(ramp(1001, rank()));
  world().all_reduce(x, ReduceOp::kSum, stream()).wait();
  std::vector<float> expected(1001);
  for (int r = 0; r < size(); ++r)
    for (std::size_t i = 0; i < expected.size(); ++i)
      expected[i] += static_cast<float>(i) + static_cast<float>(r);
  EXPECT_EQ(get<float>(x), expected);
  const Tensor top = put(std::vector<std::int32_t>{rank(), -rank()});
  world().all_reduce(top, ReduceOp::kMax, stream()).wait();
  EXPECT_EQ(get<std::int32_t>(top), (std::vector<std::int32_t>{size() - 1, 0}));
  const auto blocks = static_cast<std::size_t>(size());
  const Tensor in = put(ramp(7 * blocks, 0)), out = put(std::vector<float>(7, -1));
  world().reduce_scatter(in, out, ReduceOp::kSum, stream()).wait();
  std::vector<float> mine = ramp(7, 7 * rank());
  for (float& v : mine) v *= static_cast<float>(size());
  EXPECT_EQ(get<float>(out), mine);
}

// Sums that would round at every hop, and maxima that would lose a NaN. The communicator stays
// whole.
TEST_F(Nccl, RefusesWhatItWouldDoWrong) {
  const Tensor x = put(std::vector<float>{1});
  const Tensor narrow = put(std::vector<BFloat16>{BFloat16(1)});
  EXPECT_THROW(world().all_reduce(x, ReduceOp::kMax, stream()), InternalError);
  EXPECT_THROW(world().all_reduce(narrow, ReduceOp::kSum, stream()), InternalError);
  world().all_reduce(x, ReduceOp::kSum, stream()).wait();
  EXPECT_EQ(get<float>(x)[0], static_cast<float>(size()));
}

TEST_F(Nccl, ShiftsOfSizesOfTheirOwn) {
  for (const int offset : {0, 1, -1, size() + 1}) {
    const int from = ((rank() - offset) % size() + size()) % size();
    const auto length = [](int r) { return static_cast<std::size_t>(100 * r); };  // rank 0: none
    const Tensor send = put(ramp(length(rank()), rank()));
    const Tensor recv = put(std::vector<float>(length(from), -1));
    world().shift({.send = send, .recv = recv, .offset = offset}, stream()).wait();
    EXPECT_EQ(get<float>(recv), ramp(length(from), from)) << "offset " << offset;
  }
}

TEST_F(Nccl, EveryRankToEveryRank) {
  std::vector<Message> sends, recvs;
  for (int peer = 0; peer < size(); ++peer) {
    sends.push_back({peer, put(ramp(static_cast<std::size_t>(3 + peer), rank()))});
    recvs.push_back({peer, put(std::vector<float>(static_cast<std::size_t>(3 + rank()), -1))});
  }
  world().exchange(sends, recvs, stream()).wait();
  for (const Message& m : recvs)
    EXPECT_EQ(get<float>(m.buffer), ramp(static_cast<std::size_t>(3 + rank()), m.peer));
  const auto blocks = static_cast<std::size_t>(size());
  std::vector<float> in(5 * blocks), expected(5 * blocks);
  for (std::size_t i = 0; i < in.size(); ++i) {
    in[i] = static_cast<float>(100 * rank()) + static_cast<float>(i / 5);  // sender, receiver
    expected[i] = static_cast<float>(100 * (i / 5)) + static_cast<float>(rank());
  }
  const Tensor out = put(std::vector<float>(in.size(), -1));
  world().all_to_all(put(in), out, stream()).wait();
  EXPECT_EQ(get<float>(out), expected);
}

TEST_F(Nccl, GatherAndBroadcast) {
  const Tensor all = put(std::vector<float>(4 * static_cast<std::size_t>(size()), -1));
  world().all_gather(put(ramp(4, 4 * rank())), all, stream()).wait();
  EXPECT_EQ(get<float>(all), ramp(4 * static_cast<std::size_t>(size()), 0));
  for (int root = 0; root < size(); ++root) {
    const Tensor x = put(ramp(9, rank()));
    world().broadcast(x, root, stream()).wait();
    EXPECT_EQ(get<float>(x), ramp(9, root));
  }
  world().barrier();
}

// Any colors, with an operation of the parent under way, and parents that go before their children.
TEST_F(Nccl, Splits) {
  const Tensor x = put(ramp(1000, 0));
  Pending under_way = world().all_reduce(x, ReduceOp::kSum, stream());
  const auto part = world().split(rank() % 2 - 1, -rank());
  under_way.wait();
  const int members = size() / 2 + (rank() % 2 == 0 ? size() % 2 : 0);
  ASSERT_EQ(part->size(), members);
  EXPECT_EQ(part->rank(), members - 1 - rank() / 2);  // keys run backwards
  const Tensor sum = put(std::vector<std::int64_t>{rank()});
  part->all_reduce(sum, ReduceOp::kSum, stream()).wait();
  std::int64_t expected = 0;
  for (int r = rank() % 2; r < size(); r += 2) expected += r;
  EXPECT_EQ(get<std::int64_t>(sum)[0], expected);
  const auto again = part->duplicate();
  EXPECT_EQ(again->size(), members);
}

TEST_F(Nccl, CountsAsADryRunDoes) {
  const auto dry = make_dry_communicator(rank(), size());
  Stream nothing;
  const auto blocks = static_cast<std::size_t>(size());
  const auto program = [&](Communicator& comm, Stream& queue) {
    const Tensor x = put(ramp(1003, 0));
    comm.all_reduce(x, ReduceOp::kSum, queue).wait();
    comm.broadcast(x, size() - 1, queue).wait();
    comm.shift({.send = put(ramp(50, 0)), .recv = put(ramp(50, 0))}, queue).wait();
    comm.all_gather(put(ramp(6, 0)), put(ramp(6 * blocks, 0)), queue).wait();
    comm.reduce_scatter(put(ramp(6 * blocks, 0)), put(ramp(6, 0)), ReduceOp::kSum, queue).wait();
    comm.all_to_all(put(ramp(6 * blocks, 0)), put(ramp(6 * blocks, 0)), queue).wait();
  };
  program(world(), stream());
  program(*dry, nothing);
  for (std::size_t i = 0; i < kNumCollectives; ++i) {
    EXPECT_EQ(world().counters().by_collective[i].calls, dry->counters().by_collective[i].calls);
    EXPECT_EQ(world().counters().by_collective[i].bytes_sent,
              dry->counters().by_collective[i].bytes_sent)
        << name_of(static_cast<Collective>(i));
  }
  EXPECT_EQ(world().last_operation().rfind("all_to_all #6", 0), 0u) << world().last_operation();
  world().reset_counters();
  EXPECT_EQ(world().counters().total_bytes(), 0);
}

// The trainer tells small values of the host over whatever communicator it has.
TEST_F(Nccl, TensorsOfTheHostGoOverTheBootstrap) {
  Stream host;
  std::int64_t value = rank();
  world().all_reduce(host_tensor(&value, {1}), ReduceOp::kSum, host).wait();
  EXPECT_EQ(value, size() * (size() - 1) / 2);
  const Tensor x = put(ramp(1000, rank()));
  Pending under_way = world().all_reduce(x, ReduceOp::kSum, stream());
  world().broadcast(host_tensor(&value, {1}), 0, host).wait();
  std::vector<std::int64_t> all(static_cast<std::size_t>(size()));
  value = 10 + rank();
  world().all_gather(host_tensor(&value, {1}), host_tensor(all.data(), {size()}), host).wait();
  for (int r = 0; r < size(); ++r) EXPECT_EQ(all[static_cast<std::size_t>(r)], 10 + r);
  agree_on(world(), "configuration", "the same");
  under_way.wait();
  EXPECT_EQ(get<float>(x)[0], static_cast<float>(size() * (size() - 1) / 2));
}

// Ranks of one GPU stage; both transports over the same hosts, one after the other and mixed.
TEST_F(Nccl, BesideAStagedCommunicator) {
  const auto staged = make_staged_communicator(*hosts, device());
  const Tensor x = put(ramp(5000, rank())), y = put(ramp(5000, rank()));
  Pending a = world().all_reduce(x, ReduceOp::kSum, stream());
  Pending b = staged->all_reduce(y, ReduceOp::kSum, stream());
  b.wait();
  a.wait();
  EXPECT_EQ(get<float>(x), get<float>(y));  // whole numbers: exact in any order
}

// After an abort the rank's next call says why, and nothing is left on the GPU.
TEST_F(Nccl, SaysWhyItWasAborted) {
  if (size() > 1) GTEST_SKIP() << "an abort ends an MPI job";
  const auto self = make_self_communicator();
  const auto own = make_nccl_communicator(*self, device().id().index);
  EXPECT_FALSE(own->failed());
  own->abort(ExitCode::kCommunication, "enough");
  EXPECT_TRUE(own->failed());
  const Tensor x = put(ramp(10, 0));
  try {
    own->all_reduce(x, ReduceOp::kSum, stream()).wait();
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kCommunication);
    EXPECT_NE(std::string(e.what()).find("enough"), std::string::npos) << e.what();
  }
}

// Every rank waits for a message that nobody sends. The kernels end when their Pendings unwind.
TEST_F(Nccl, UnwindingEndsWhatIsUnderWay) {
  if (size() == 1) GTEST_SKIP() << "a message to oneself does not wait";
  const Tensor y = put(ramp(100, 0));
  const Message from_next{(rank() + 1) % size(), y};
  EXPECT_THROW(
      {
        const Pending lost = world().exchange({}, {&from_next, 1}, stream());
        throw std::runtime_error("unwinds");
      },
      std::runtime_error);
  EXPECT_EQ(get<float>(y), ramp(100, 0));
  EXPECT_THROW(world().all_reduce(y, ReduceOp::kSum, stream()), Error);
  hosts->barrier();
}

}  // namespace
}  // namespace farspan

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  // Before MPI: it starts threads, beside which the environment must not change.
  if (const char* rank = std::getenv("OMPI_COMM_WORLD_RANK")) {
    setenv("NCCL_HOSTID", rank, 0);
    setenv("NCCL_SOCKET_IFNAME", "lo", 0);
  }
  farspan::MpiSession session(&argc, &argv);
  farspan::hosts = &session.world();
  if (session.world().rank() != 0)
    delete ::testing::UnitTest::GetInstance()->listeners().Release(
        ::testing::UnitTest::GetInstance()->listeners().default_result_printer());
  return RUN_ALL_TESTS();
}
