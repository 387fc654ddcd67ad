// Device tensors on thread ranks: the suite of every transport, what overlaps, what must not wait,
// failures, and the memory that is kept.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <stdexcept>
#include <thread>
#include <vector>

#include "comm/device_mirror.h"
#include "comm/factory.h"
#include "comm/suite.h"
#include "support/async_device.h"

namespace farspan {
namespace {

using testing::AsyncDevice;
using testing::DeviceMirror;
using namespace std::chrono_literals;

constexpr StagingOptions kSmallChunks{.chunk_bytes = std::size_t{40} << 10};

class StagedRanks : public ::testing::TestWithParam<int> {};

TEST_P(StagedRanks, Suite) {
  for (const testing::Check& check : testing::all_checks()) {
    SCOPED_TRACE(check.name);
    AsyncDevice device(static_cast<std::uint64_t>(GetParam()));  // of all ranks
    run_local_ranks(GetParam(), [&](Communicator& hosts) {
      DeviceMirror world(make_staged_communicator(hosts, device, kSmallChunks), device);
      check.run(world);
    });
    EXPECT_EQ(device.pinned_bytes(), 0u);
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, StagedRanks, ::testing::Values(1, 2, 3, 4));

// A stream of one rank's device work that can be stopped.
struct Lane {
  explicit Lane(AsyncDevice& on) : device(on), stream(on.make_stream()) {}
  // Device memory whose elements are all `value`.
  Tensor put(float value, std::int64_t n) {
    buffers.push_back(device.allocate(static_cast<std::size_t>(n) * 4));
    const Tensor t = buffers.back().tensor(DType::kF32, {n});
    set(t, value);
    return t;
  }
  void set(const Tensor& t, float value) {
    AsyncDevice::enqueue(*stream, [this, t, value] {
      std::fill_n(reinterpret_cast<float*>(device.reach(t.data)), t.numel(), value);
    });
  }
  // The stream goes no further until the promise is kept.
  void stop_until(std::shared_future<void> go) {
    AsyncDevice::enqueue(*stream, [go] { go.wait(); });
  }
  std::vector<float> get(const Tensor& t) {
    std::vector<float> host(static_cast<std::size_t>(t.numel()));
    device.copy(reinterpret_cast<std::byte*>(host.data()), t.data, t.bytes(), *stream);
    stream->synchronize();
    return host;
  }
  AsyncDevice& device;
  std::list<Buffer> buffers;
  std::unique_ptr<Stream> stream;  // before its memory goes it has done all it was given
};

// Work that the stream holds beyond the operation's start holds up neither the operation nor
// wait(); a later operation, which has to wait for that work, does not hold up the first either.
TEST(Staging, WaitsForNothingButItsOwnStart) {
  AsyncDevice device;
  run_local_ranks(2, [&](Communicator& hosts) {
    const auto world = make_staged_communicator(hosts, device, kSmallChunks);
    Lane lane(device);
    std::promise<void> go;
    const Tensor a = lane.put(1, 50000), a_in = lane.put(-1, 50000);
    const Tensor b = lane.put(1, 50000);
    Pending first = world->shift({.send = a, .recv = a_in}, *lane.stream);
    lane.stop_until(go.get_future().share());
    lane.set(b, static_cast<float>(world->rank() + 2));
    Pending second = world->all_reduce(b, ReduceOp::kSum, *lane.stream);
    first.wait();  // would never return if it waited for the stream
    hosts.barrier();
    go.set_value();
    second.wait();
    EXPECT_EQ(lane.get(a_in), std::vector<float>(50000, 1));
    EXPECT_EQ(lane.get(b), std::vector<float>(50000, 5));
  });
}

// What the stream does before the start comes before the copy, however long it takes; what it does
// after wait() comes after the arrival. The receiver's memory is not touched before its own start.
TEST(Staging, KeepsTheOrderOfTheStream) {
  AsyncDevice device;
  run_local_ranks(3, [&](Communicator& hosts) {
    const auto world = make_staged_communicator(hosts, device, kSmallChunks);
    Lane lane(device);
    const Tensor x = lane.put(0, 30000), in = lane.put(0, 30000), seen = lane.put(0, 30000);
    for (int i = 1; i <= 20; ++i) {
      AsyncDevice::enqueue(*lane.stream, [i, rank = world->rank()] {
        if (i % 3 == rank) std::this_thread::sleep_for(2ms);
      });
      lane.set(x, static_cast<float>(100 * i + world->rank()));
      device.copy(seen.data, in.data, in.bytes(), *lane.stream);  // the last round's, undisturbed
      Pending p = world->shift({.send = x, .recv = in}, *lane.stream);
      p.wait();
      const int from = (world->rank() + 2) % 3;
      const float last = i == 1 ? 0.f : static_cast<float>(100 * (i - 1) + from);
      EXPECT_EQ(lane.get(seen), std::vector<float>(30000, last)) << "round " << i;
      EXPECT_EQ(lane.get(in), std::vector<float>(30000, static_cast<float>(100 * i + from)));
    }
  });
}

// Memory in use for ever is that of what was under way at once.
TEST(Staging, KeepsFewBuffers) {
  AsyncDevice device;
  run_local_ranks(2, [&](Communicator& hosts) {
    const auto world = make_staged_communicator(hosts, device, kSmallChunks);
    Lane lane(device);
    const std::int64_t n = 100000;
    const Tensor x = lane.put(1, n), in = lane.put(0, n);
    for (int i = 0; i < 200; ++i) {
      const std::int64_t part = 1 + (i * 7919) % n;
      world->shift({.send = x.rows(0, part), .recv = in.rows(0, part)}, *lane.stream).wait();
      world->all_reduce(x.rows(0, part), ReduceOp::kMax, *lane.stream).wait();
    }
    hosts.barrier();
    EXPECT_LE(device.pinned_bytes(), 2u * 2 * (400000 + 400000 / 4));  // two ranks, two buffers
    hosts.barrier();
  });
  EXPECT_EQ(device.pinned_bytes(), 0u);
}

// One rank throws with operations under way, whose streams have not even come to their starts.
TEST(Staging, UnwindingGivesUpAndTellsTheOthers) {
  AsyncDevice device;
  std::atomic<int> told{0};
  try {
    run_local_ranks(3, [&](Communicator& hosts) {
      const auto world = make_staged_communicator(hosts, device, kSmallChunks);
      Lane lane(device);
      const Tensor x = lane.put(1, 200000), in = lane.put(0, 200000);
      try {
        AsyncDevice::enqueue(*lane.stream, [] { std::this_thread::sleep_for(20ms); });
        Pending sum = world->all_reduce(x, ReduceOp::kSum, *lane.stream);
        Pending p = world->shift({.send = in, .recv = in}, *lane.stream);
        if (world->rank() == 1) throw Error(ExitCode::kBadData, {.what = "the true reason"});
        sum.wait();
        p.wait();
        lane.stream->synchronize();
        world->barrier();
      } catch (const Error& e) {
        if (world->rank() != 1) {
          EXPECT_EQ(e.code(), ExitCode::kCommunication) << e.what();
        }
        ++told;
        throw;
      }
    });
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), ::testing::HasSubstr("the true reason"));
  }
  EXPECT_EQ(told, 3);
  EXPECT_EQ(device.pinned_bytes(), 0u);
}

TEST(Staging, RanksThatDisagreeAreNamed) {
  AsyncDevice device;
  try {
    run_local_ranks(2, [&](Communicator& hosts) {
      const auto world = make_staged_communicator(hosts, device);
      Lane lane(device);
      const Tensor x = lane.put(1, 1000);
      const Tensor mine = world->rank() == 0 ? x : x.rows(0, 10);
      world->all_reduce(mine, ReduceOp::kSum, *lane.stream).wait();
      world->barrier();
    });
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(),
                ::testing::HasSubstr("rank 0 calls all_reduce of 4000 bytes (sum of f32), "
                                     "rank 1 calls all_reduce of 40 bytes"));
  }
}

TEST(Staging, OneRankMovesNothingThatStaysWhereItIs) {
  AsyncDevice device;
  const auto self = make_self_communicator();
  const auto world = make_staged_communicator(*self, device);
  Lane lane(device);
  const Tensor x = lane.put(3, 1000);
  world->all_reduce(x, ReduceOp::kSum, *lane.stream).wait();
  world->broadcast(x, 0, *lane.stream).wait();
  EXPECT_EQ(device.pinned_bytes(), 0u);
  EXPECT_EQ(lane.get(x), std::vector<float>(1000, 3));
}

TEST(Staging, RefusesOtherDevices) {
  AsyncDevice device(1, 0), other(1, 1);
  const auto self = make_self_communicator();
  const auto world = make_staged_communicator(*self, device);
  Lane lane(other);
  const Tensor x = lane.put(3, 10);
  EXPECT_THROW(world->all_reduce(x, ReduceOp::kSum, *lane.stream), InternalError);
  EXPECT_THROW(self->all_reduce(x, ReduceOp::kSum, *lane.stream), InternalError);
}

}  // namespace
}  // namespace farspan
