#include "comm/suite.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <thread>
#include <vector>

#include "comm/agree.h"

namespace farspan::testing {
namespace {

std::int64_t blocks(int size) { return size; }

void random_programs(Communicator& world) {
  for (std::uint64_t seed = 1; seed <= 3; ++seed) run_random_program(world, seed, 40, false);
}

// More than the scratch and the chunks of a reduction, uneven blocks, tail chunks.
void large_reduction(Communicator& world) {
  Stream stream;
  const std::int64_t n = 3 * 512 * 1024 + 17;
  std::vector<float> data(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < data.size(); ++i)
    data[i] = static_cast<float>(i % 1009) * 0.1f + static_cast<float>(world.rank()) * 0.3f;
  world.all_reduce(host_tensor(data.data(), {n}), ReduceOp::kSum, stream).wait();
  for (std::size_t i = 0; i < data.size(); ++i) {
    float expected = static_cast<float>(i % 1009) * 0.1f;
    for (int r = 1; r < world.size(); ++r)
      expected += static_cast<float>(i % 1009) * 0.1f + static_cast<float>(r) * 0.3f;
    ASSERT_EQ(data[i], expected) << "element " << i << " on rank " << world.rank();
  }
}

void bf16_rounds_once(Communicator& world) {
  Stream stream;
  // 1 + P small terms: each alone would be lost to rounding in bf16.
  std::vector<BFloat16> data{world.rank() == 0 ? BFloat16(1.0f) : BFloat16(0.00390625f)};
  world.all_reduce(host_tensor(data.data(), {1}), ReduceOp::kSum, stream).wait();
  const float exact = 1.0f + 0.00390625f * static_cast<float>(world.size() - 1);
  EXPECT_EQ(data[0].bits, BFloat16(exact).bits);
}

void maximum_keeps_nan(Communicator& world) {
  Stream stream;
  for (int bad = 0; bad < world.size(); ++bad)
    for (const ReduceOp op : {ReduceOp::kMax, ReduceOp::kMin, ReduceOp::kSum}) {
      float value = world.rank() == bad ? std::numeric_limits<float>::quiet_NaN() : 1.0f;
      world.all_reduce(host_tensor(&value, {1}), op, stream).wait();
      EXPECT_TRUE(std::isnan(value)) << "NaN on rank " << bad;
    }
}

void in_place_forms(Communicator& world) {
  Stream stream;
  const int size = world.size(), rank = world.rank();
  std::vector<std::int32_t> all(static_cast<std::size_t>(size) * 3, -1);
  const Tensor out = host_tensor(all.data(), {blocks(size) * 3});
  for (int i = 0; i < 3; ++i) all[static_cast<std::size_t>(rank * 3 + i)] = rank * 10 + i;
  world.all_gather(out.rows(rank * 3, 3), out, stream).wait();
  for (int r = 0; r < size; ++r)
    for (int i = 0; i < 3; ++i) EXPECT_EQ(all[static_cast<std::size_t>(r * 3 + i)], r * 10 + i);
  world.reduce_scatter(out, out.rows(rank * 3, 3), ReduceOp::kSum, stream).wait();
  for (int i = 0; i < 3; ++i)
    EXPECT_EQ(all[static_cast<std::size_t>(rank * 3 + i)], size * (rank * 10 + i));
}

// Operations of several phases on two communicators, waited on in opposite orders by odd and even
// ranks: each wait has to move the other communicator's operation too.
void crossed_waits(Communicator& world) {
  Stream stream;
  const auto other = world.duplicate();
  for (int repeat = 0; repeat < 20; ++repeat) {
    std::vector<double> a(5000, 1.0), b(5000, 2.0);
    Pending first = world.all_reduce(host_tensor(a.data(), {5000}), ReduceOp::kSum, stream);
    Pending second = other->all_reduce(host_tensor(b.data(), {5000}), ReduceOp::kSum, stream);
    if (world.rank() % 2 == 0) std::swap(first, second);
    second.wait();
    first.wait();
    EXPECT_EQ(a[4999], world.size());
    EXPECT_EQ(b[4999], 2.0 * world.size());
  }
}

// A checkpoint writer beside the training thread: two threads, two communicators, no order between.
void two_threads(Communicator& world) {
  const auto writer_comm = world.duplicate();
  std::thread writer([&] {
    for (std::uint64_t seed = 100; seed < 102; ++seed)
      run_random_program(*writer_comm, seed, 30, false);
  });
  for (std::uint64_t seed = 200; seed < 202; ++seed) run_random_program(world, seed, 30, false);
  writer.join();
}

// Splits by two threads at once.
void two_threads_split(Communicator& world) {
  const auto second = world.duplicate();
  const auto work = [](Communicator& comm) {
    for (int i = 0; i < 5; ++i) {
      const auto part = comm.split(comm.rank() % 2, 0);
      run_random_program(*part, static_cast<std::uint64_t>(i), 4, false);
    }
  };
  std::thread other([&] { work(*second); });
  work(world);
  other.join();
}

void splits(Communicator& world) {
  Stream stream;
  const int size = world.size(), rank = world.rank();
  // Odd and even ranks, in descending order.
  const auto half = world.split(rank % 2 == 0 ? -7 : 40, -rank);
  const int members = rank % 2 == 0 ? (size + 1) / 2 : size / 2;
  EXPECT_EQ(half->size(), members);
  EXPECT_EQ(half->rank(), members - 1 - rank / 2);
  EXPECT_EQ(half->transport(), world.transport());
  std::int64_t sum = rank;
  half->all_reduce(host_tensor(&sum, {1}), ReduceOp::kSum, stream).wait();
  std::int64_t expected = 0;
  for (int r = rank % 2; r < size; r += 2) expected += r;
  EXPECT_EQ(sum, expected);
  // A group of each rank alone, and a group of a group.
  const auto alone = world.split(rank, 0);
  EXPECT_EQ(alone->size(), 1);
  alone->barrier();
  const auto again = half->split_by([](int) { return SplitPlace{.color = 3, .key = 0}; });
  EXPECT_EQ(again->size(), members);
  EXPECT_EQ(again->rank(), half->rank());
  run_random_program(*again, 77, 10, false);
}

// Exactly what each algorithm is documented to send.
void counters(Communicator& world) {
  Stream stream;
  const int size = world.size();
  const auto p = static_cast<std::size_t>(size);
  const std::int64_t others = size - 1, n = 24 * blocks(size);
  std::vector<float> big(static_cast<std::size_t>(n)), out(static_cast<std::size_t>(n));
  std::vector<float> part(static_cast<std::size_t>(n) / p);
  const Tensor all = host_tensor(big.data(), {n}), all_out = host_tensor(out.data(), {n});
  const Tensor block = host_tensor(part.data(), {n / size});
  world.reset_counters();
  world.all_reduce(all, ReduceOp::kSum, stream).wait();
  world.all_gather(block, all_out, stream).wait();
  world.reduce_scatter(all, block, ReduceOp::kSum, stream).wait();
  world.all_to_all(all, all_out, stream).wait();
  world.shift({.send = all, .recv = all_out}, stream).wait();
  world.shift({.send = all, .recv = all_out, .offset = size}, stream).wait();
  world.broadcast(all, 0, stream).wait();
  world.barrier();
  const auto apart = world.duplicate();
  const CommCounters c = world.counters();
  EXPECT_EQ(c.of(Collective::kAllReduce).bytes_sent, 2 * n * 4 * others / size);
  EXPECT_EQ(c.of(Collective::kAllGather).bytes_sent, n / size * 4 * others);
  EXPECT_EQ(c.of(Collective::kReduceScatter).bytes_sent, n / size * 4 * others);
  EXPECT_EQ(c.of(Collective::kAllToAll).bytes_sent, n / size * 4 * others);
  EXPECT_EQ(c.of(Collective::kShift).bytes_sent, size > 1 ? n * 4 : 0);
  EXPECT_EQ(c.of(Collective::kShift).calls, 2);
  EXPECT_EQ(c.of(Collective::kBarrier).calls, 1);
  EXPECT_EQ(c.of(Collective::kBarrier).bytes_sent, 0);
  EXPECT_EQ(c.of(Collective::kSplit).calls, 1);
  EXPECT_EQ(c.of(Collective::kSplit).bytes_sent, 0);
  EXPECT_EQ(apart->counters().total_bytes(), 0);
  std::int64_t broadcast = c.of(Collective::kBroadcast).bytes_sent;
  world.all_reduce(host_tensor(&broadcast, {1}), ReduceOp::kSum, stream).wait();
  EXPECT_EQ(broadcast, n * 4 * others);  // over all ranks: every other rank gets it once
}

void tells_last_operation(Communicator& world) {
  Stream stream;
  const auto fresh = world.duplicate();
  EXPECT_EQ(fresh->last_operation(), "none");
  fresh->barrier();
  std::vector<float> data(1024);
  fresh->all_reduce(host_tensor(data.data(), {1024}), ReduceOp::kSum, stream).wait();
  EXPECT_EQ(fresh->last_operation(), "all_reduce #2, 4096 bytes");
}

void agreement(Communicator& world) {
  agree_on(world, "configuration", "");
  agree_on(world, "configuration", "the same");
  if (world.size() == 1) return;
  const int last = world.size() - 1;
  const std::string others = last == 1 ? "rank 0" : fmt::format("ranks 0-{}", last - 1);
  try {
    agree_on(world, "configuration", world.rank() == last ? "b" : "a");
    ADD_FAILURE() << "no error on rank " << world.rank();
  } catch (const SharedError& e) {
    EXPECT_EQ(e.code(), ExitCode::kUsage);
    EXPECT_EQ(e.report(), world.rank() == 0);
    EXPECT_EQ(e.text().what, fmt::format("configuration differs between ranks: {} 'a', rank {} 'b'",
                                         others, last));
  }
  // Long values: the line that differs.
  std::string text;
  for (int i = 0; i < 50; ++i)
    text += fmt::format("key_{}: {}\n", i, i == 37 ? world.rank() / last : i);
  try {
    agree_on(world, "configuration", text);
    ADD_FAILURE() << "no error on rank " << world.rank();
  } catch (const SharedError& e) {
    EXPECT_EQ(
        e.text().what,
        fmt::format("configuration differs between ranks: {} 'key_37: 0', rank {} 'key_37: 1'",
                    others, last));
  }
  world.barrier();  // and life goes on
}

void shared_errors(Communicator& world) {
  together(world, [] {});
  const int last = world.size() - 1;
  // The last two ranks fail; the lower one reports.
  const int reporter = last == 0 ? 0 : last - 1;
  try {
    together(world, [&] {
      if (world.rank() >= reporter)
        throw Error(ExitCode::kBadData, {.what = fmt::format("bad file on {}", world.rank()),
                                         .where = "here",
                                         .fix = "mend it"});
    });
    ADD_FAILURE() << "no error on rank " << world.rank();
  } catch (const SharedError& e) {
    EXPECT_EQ(e.code(), ExitCode::kBadData);
    EXPECT_EQ(e.report(), world.rank() == reporter);
    EXPECT_EQ(e.rank(), world.rank() >= reporter ? world.rank() : reporter);
    EXPECT_EQ(e.text().what, fmt::format("bad file on {}", e.rank()));
    EXPECT_EQ(e.text().fix, "mend it");
  }
  // Not only our own exceptions.
  try {
    together(world, [&] {
      if (world.rank() == last) throw std::runtime_error("foreign");
    });
    ADD_FAILURE() << "no error on rank " << world.rank();
  } catch (const SharedError& e) {
    EXPECT_EQ(e.code(), ExitCode::kInternal);
    EXPECT_EQ(e.text().what, "foreign");
    EXPECT_EQ(e.report(), world.rank() == last);
  }
  world.barrier();
}

constexpr Check kChecks[] = {
    {"random_programs", random_programs},
    {"large_reduction", large_reduction},
    {"bf16_rounds_once", bf16_rounds_once},
    {"maximum_keeps_nan", maximum_keeps_nan},
    {"in_place_forms", in_place_forms},
    {"crossed_waits", crossed_waits},
    {"two_threads", two_threads},
    {"two_threads_split", two_threads_split},
    {"splits", splits},
    {"counters", counters},
    {"tells_last_operation", tells_last_operation},
    {"agreement", agreement},
    {"shared_errors", shared_errors},
};

}  // namespace

std::span<const Check> all_checks() { return kChecks; }

}  // namespace farspan::testing
