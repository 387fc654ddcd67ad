// The suite on MPI ranks: mpirun -np P comm_mpi_test. Every rank runs every check; a failure on any
// makes the job fail.
#include <gtest/gtest.h>

#include "comm/agree.h"
#include "comm/device_mirror.h"
#include "comm/factory.h"
#include "comm/suite.h"
#include "support/async_device.h"

namespace farspan {
namespace {

Communicator* world = nullptr;  // of this test program

TEST(MpiTransport, Suite) {
  EXPECT_EQ(world->transport(), "mpi");
  for (const testing::Check& check : testing::all_checks()) {
    SCOPED_TRACE(fmt::format("{} on rank {}", check.name, world->rank()));
    check.run(*world);
  }
}

// Tensors of a device that no host pointer reaches, moved by the progress thread too.
TEST(MpiTransport, SuiteOnADevice) {
  testing::AsyncDevice device(static_cast<std::uint64_t>(world->rank() + 1));
  for (const testing::Check& check : testing::all_checks()) {
    SCOPED_TRACE(fmt::format("{} on rank {}", check.name, world->rank()));
    testing::DeviceMirror mirror(
        make_staged_communicator(*world, device, {.chunk_bytes = std::size_t{256} << 10}), device);
    check.run(mirror);
  }
  EXPECT_EQ(device.pinned_bytes(), 0u);
}

// Beyond one piece of a rendezvous message, all at once in both directions.
TEST(MpiTransport, LargeShifts) {
  Stream stream;
  const std::int64_t n = 3 << 20;
  std::vector<std::vector<std::int32_t>> out(3), in(3);
  std::vector<Pending> pendings;
  for (int k = 0; k < 3; ++k) {
    auto& send = out[static_cast<std::size_t>(k)];
    auto& recv = in[static_cast<std::size_t>(k)];
    send.assign(static_cast<std::size_t>(n), world->rank() * 10 + k);
    recv.resize(static_cast<std::size_t>(n));
    pendings.push_back(world->shift(
        {.send = host_tensor(send.data(), {n}), .recv = host_tensor(recv.data(), {n}), .offset = k},
        stream));
  }
  for (int k = 2; k >= 0; --k) {
    pendings[static_cast<std::size_t>(k)].wait();
    const int from = (world->rank() - k % world->size() + world->size()) % world->size();
    const auto& recv = in[static_cast<std::size_t>(k)];
    EXPECT_EQ(recv.front(), from * 10 + k);
    EXPECT_EQ(recv.back(), from * 10 + k);
  }
}

TEST(MpiTransport, RanksOfThisMachine) {
  // One machine under CTest.
  std::int64_t rank_sum = world->rank();
  Stream stream;
  world->all_reduce(host_tensor(&rank_sum, {1}), ReduceOp::kSum, stream).wait();
  EXPECT_EQ(rank_sum, world->size() * (world->size() - 1) / 2);
}

}  // namespace
}  // namespace farspan

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  farspan::MpiSession session(&argc, &argv);
  farspan::world = &session.world();
  EXPECT_EQ(session.local_size(), session.world().size());
  EXPECT_EQ(session.local_rank(), session.world().rank());
  if (session.world().rank() != 0)
    delete ::testing::UnitTest::GetInstance()->listeners().Release(
        ::testing::UnitTest::GetInstance()->listeners().default_result_printer());
  return RUN_ALL_TESTS();
}
