// The suite on self and on thread ranks, dry counts against real ones, and failures of thread
// ranks.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <tuple>
#include <vector>

#include "comm/agree.h"
#include "comm/factory.h"
#include "comm/suite.h"

namespace farspan {
namespace {

using ::testing::HasSubstr;

TEST(SelfTransport, Suite) {
  for (const testing::Check& check : testing::all_checks()) {
    SCOPED_TRACE(check.name);
    const auto self = make_self_communicator();
    EXPECT_EQ(self->transport(), "self");
    check.run(*self);
  }
}

class ThreadTransport : public ::testing::TestWithParam<int> {};

TEST_P(ThreadTransport, Suite) {
  for (const testing::Check& check : testing::all_checks()) {
    SCOPED_TRACE(check.name);
    run_local_ranks(GetParam(), [&](Communicator& world) { check.run(world); });
  }
}

TEST_P(ThreadTransport, DryCountsTheSame) {
  const int size = GetParam();
  std::mutex mutex;
  run_local_ranks(size, [&](Communicator& world) {
    const auto dry = make_dry_communicator(world.rank(), size);
    EXPECT_EQ(dry->transport(), "dry");
    for (std::uint64_t seed = 10; seed < 13; ++seed) {
      testing::run_random_program(world, seed, 40, false);
      testing::run_random_program(*dry, seed, 40, true);
      const auto place = [](int r) { return SplitPlace{.color = r % 2, .key = -r}; };
      const auto part = world.split_by(place), dry_part = dry->split_by(place);
      EXPECT_EQ(part->rank(), dry_part->rank());
      EXPECT_EQ(part->size(), dry_part->size());
    }
    const std::lock_guard lock(mutex);
    for (int c = 0; c < kNumCollectives; ++c) {
      const auto kind = static_cast<Collective>(c);
      SCOPED_TRACE(fmt::format("{} on rank {} of {}", name_of(kind), world.rank(), size));
      EXPECT_EQ(world.counters().of(kind).calls, dry->counters().of(kind).calls);
      EXPECT_EQ(world.counters().of(kind).bytes_sent, dry->counters().of(kind).bytes_sent);
    }
    EXPECT_EQ(world.last_operation(), dry->last_operation());
  });
}

INSTANTIATE_TEST_SUITE_P(Ranks, ThreadTransport, ::testing::Range(1, 9));

// Runs `body`, in which ranks disagree, and gives the text that the caller gets and all ranks'.
struct Outcome {
  std::string what;
  std::vector<std::string> by_rank;
};
Outcome disagree(int size, const std::function<void(Communicator&)>& body) {
  Outcome outcome;
  outcome.by_rank.resize(static_cast<std::size_t>(size));
  try {
    run_local_ranks(size, [&](Communicator& world) {
      try {
        body(world);
      } catch (const Error& e) {
        EXPECT_EQ(e.code(), ExitCode::kCommunication) << e.what();
        outcome.by_rank[static_cast<std::size_t>(world.rank())] = e.text().what;
        throw;
      }
    });
    ADD_FAILURE() << "no error";
  } catch (const Error& e) {
    outcome.what = e.text().what;
  }
  return outcome;
}

TEST(Disagreement, Kind) {
  const Outcome outcome = disagree(2, [](Communicator& world) {
    Stream stream;
    std::vector<float> data(1024);
    if (world.rank() == 0)
      world.all_reduce(host_tensor(data.data(), {1024}), ReduceOp::kSum, stream).wait();
    else
      world.barrier();
  });
  EXPECT_EQ(
      outcome.what,
      "collective #1: rank 0 calls all_reduce of 4096 bytes (sum of f32), rank 1 calls barrier");
  for (const std::string& what : outcome.by_rank) EXPECT_EQ(what, outcome.what);
}

TEST(Disagreement, SizeTypeOperatorRootOffset) {
  const auto case_of = [](int which, Communicator& world) {
    Stream stream;
    const bool odd = world.rank() == 2;
    std::vector<float> data(64), out(256);
    const std::int64_t n = odd && which == 0 ? 32 : 64;
    const Tensor buffer = host_tensor(data.data(), {n});
    const Tensor ints = host_tensor(reinterpret_cast<std::int32_t*>(data.data()), {64});
    switch (which) {
      case 0:
        return world.all_gather(buffer, host_tensor(out.data(), {n * world.size()}), stream).wait();
      case 1:
        return world.all_reduce(odd ? ints : buffer, ReduceOp::kSum, stream).wait();
      case 2:
        return world.all_reduce(buffer, odd ? ReduceOp::kMax : ReduceOp::kSum, stream).wait();
      case 3:
        return world.broadcast(buffer, odd ? 1 : 0, stream).wait();
      default:
        return world
            .shift({.send = buffer, .recv = host_tensor(out.data(), {64}), .offset = odd ? 2 : 1},
                   stream)
            .wait();
    }
  };
  const char* expected[] = {"of 128 bytes", "(sum of i32)", "(max of f32)", "from rank 1",
                            "shift by 2"};
  for (int which = 0; which < 5; ++which) {
    const Outcome outcome = disagree(4, [&](Communicator& world) {
      case_of(which, world);
      world.barrier();  // a rank that has done its part hears of it here
    });
    EXPECT_THAT(outcome.what, HasSubstr("rank 2 calls"));
    EXPECT_THAT(outcome.what, HasSubstr(expected[which]));
    for (const std::string& what : outcome.by_rank) EXPECT_THAT(what, HasSubstr("rank 2 calls"));
  }
}

TEST(Disagreement, Order) {
  const Outcome outcome = disagree(3, [](Communicator& world) {
    Stream stream;
    double a = 1, b = 2;
    world.barrier();
    if (world.rank() == 1) {
      Pending p = world.broadcast(host_tensor(&b, {1}), 0, stream);
      Pending q = world.all_reduce(host_tensor(&a, {1}), ReduceOp::kSum, stream);
      p.wait();
      q.wait();
    } else {
      Pending p = world.all_reduce(host_tensor(&a, {1}), ReduceOp::kSum, stream);
      Pending q = world.broadcast(host_tensor(&b, {1}), 0, stream);
      p.wait();
      q.wait();
    }
  });
  EXPECT_THAT(outcome.what, HasSubstr("collective #2: "));
  EXPECT_THAT(outcome.what, HasSubstr("rank 1 calls broadcast of 8 bytes from rank 0"));
}

// A message that one side does not know of, in either direction, and two sizes.
TEST(Disagreement, ExchangeSizes) {
  struct Case {
    std::int64_t sent, expected;
  };
  for (const Case c : {Case{0, 8}, Case{8, 0}, Case{4, 8}, Case{100000, 8}, Case{100000, 0}}) {
    const auto exchange = [&](Communicator& world, bool shift) {
      Stream stream;
      std::vector<std::uint8_t> out(100000), in(100000);
      const Tensor send = host_tensor(out.data(), {c.sent}),
                   recv = host_tensor(in.data(), {c.expected});
      const Tensor none = host_tensor(out.data(), {0});
      if (shift)
        return world
            .shift({.send = world.rank() == 3 ? send : none,
                    .recv = world.rank() == 1 ? recv : none,
                    .offset = 3},
                   stream)
            .wait();
      std::vector<Message> sends, recvs;
      if (world.rank() == 3) sends.push_back({.peer = 1, .buffer = send});
      if (world.rank() == 1) recvs.push_back({.peer = 3, .buffer = recv});
      return world.exchange(sends, recvs, stream).wait();
    };
    for (const bool shift : {false, true}) {
      const Outcome outcome = disagree(5, [&](Communicator& world) {
        exchange(world, shift);
        world.barrier();
      });
      EXPECT_THAT(outcome.what,
                  HasSubstr(fmt::format("rank 3 sends {} bytes to rank 1, which expects {}", c.sent,
                                        c.expected)));
    }
  }
}

TEST(Failure, FirstErrorOfARankIsTheJobs) {
  for (int repeat = 0; repeat < 20; ++repeat) {
    try {
      run_local_ranks(4, [](Communicator& world) {
        if (world.rank() == 2) throw Error(ExitCode::kBadData, {.what = "the true reason"});
        world.barrier();
      });
      FAIL() << "no error";
    } catch (const Error& e) {
      EXPECT_EQ(e.text().what, "the true reason");
      EXPECT_EQ(e.code(), ExitCode::kBadData);
    }
  }
}

// While the exception unwinds, the operation under way is given up: its buffers die with the scope.
TEST(Failure, UnwindsPastAPending) {
  for (int repeat = 0; repeat < 20; ++repeat) {
    try {
      run_local_ranks(3, [](Communicator& world) {
        Stream stream;
        std::vector<float> out(50000), in(50000);
        Pending p = world.shift(
            {.send = host_tensor(out.data(), {50000}), .recv = host_tensor(in.data(), {50000})},
            stream);
        if (world.rank() == 1) throw std::runtime_error("the true reason");
        p.wait();
        world.barrier();
      });
      FAIL() << "no error";
    } catch (const std::runtime_error& e) {
      EXPECT_STREQ(e.what(), "the true reason");
    }
  }
}

TEST(Failure, ARankThatReturnedIsNotWaitedFor) {
  const Outcome outcome = disagree(3, [](Communicator& world) {
    world.barrier();
    if (world.rank() != 1) world.barrier();
  });
  EXPECT_THAT(outcome.what, HasSubstr("waits for rank 1, which has ended"));
}

// Rank 0 is done with its part before the others, which must not take its end for a loss.
TEST(Failure, AnEndedRankMayBeDone) {
  for (int repeat = 0; repeat < 50; ++repeat)
    run_local_ranks(5, [](Communicator& world) {
      Stream stream;
      std::vector<float> data(300000, world.rank() == 0 ? 1.0f : 0.0f);
      world.broadcast(host_tensor(data.data(), {300000}), 0, stream).wait();
      EXPECT_EQ(data[299999], 1.0f);
    });
}

TEST(Failure, AbortReachesEveryCommunicator) {
  const Outcome outcome = disagree(4, [](Communicator& world) {
    const auto part = world.split(world.rank() / 2, 0);
    if (world.rank() == 3) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      world.abort(ExitCode::kExhausted, "disk full");
      return;
    }
    if (world.rank() == 0) world.barrier();
    for (;;) part->barrier();
  });
  for (int rank = 0; rank < 3; ++rank)
    EXPECT_EQ(outcome.by_rank[static_cast<std::size_t>(rank)], "rank 3 ended the job: disk full");
}

// However early a rank's part of the agreement is done, the reporting rank gets to throw its own.
TEST(Failure, TogetherReportsOnce) {
  for (int repeat = 0; repeat < 200; ++repeat) {
    std::mutex mutex;
    int reports = 0;
    const auto body = [&](Communicator& world) {
      try {
        together(world, [&] {
          if (world.rank() > 1) throw Error(ExitCode::kUsage, {.what = "no"});
        });
      } catch (const SharedError& e) {
        const std::lock_guard lock(mutex);
        reports += e.report() ? 1 : 0;
        throw;
      }
    };
    EXPECT_THROW(run_local_ranks(4, body), Error);
    ASSERT_EQ(reports, 1) << "repeat " << repeat;
  }
}

TEST(PendingDeathTest, DestroyedWithoutWait) {
  ::testing::GTEST_FLAG(death_test_style) = "threadsafe";
  const auto self = make_self_communicator();
  Stream stream;
  float x = 0;
  const Tensor t = host_tensor(&x, {1});
  EXPECT_DEATH({ Pending p = self->all_reduce(t, ReduceOp::kSum, stream); },
               "a Pending was destroyed or overwritten before wait");
  EXPECT_DEATH(
      {
        Pending p = self->all_reduce(t, ReduceOp::kSum, stream);
        p = self->all_reduce(t, ReduceOp::kSum, stream);
      },
      "a Pending was destroyed or overwritten before wait");
  Pending p = self->all_reduce(t, ReduceOp::kSum, stream);
  Pending q = std::move(p);
  EXPECT_FALSE(p.active());  // NOLINT(bugprone-use-after-move): a moved-from Pending is empty
  q.wait();
  q.wait();  // once more is nothing
}

TEST(Arguments, WrongOnesAreBugs) {
  const auto self = make_self_communicator();
  Stream stream;
  std::vector<std::uint8_t> bytes(8);
  const Tensor t = host_tensor(bytes.data(), {8});
  EXPECT_THROW(self->all_reduce(t, ReduceOp::kSum, stream), InternalError);  // not a number type
  EXPECT_THROW(self->all_gather(t, t.rows(0, 4), stream), InternalError);
  EXPECT_THROW(self->broadcast(t, 1, stream), InternalError);
  const Message m{.peer = 0, .buffer = t};
  const std::vector<Message> one{m}, two{m, m};
  EXPECT_THROW(self->exchange(two, two, stream), InternalError);
  EXPECT_THROW(self->exchange(one, {}, stream), InternalError);
  Tensor gpu = t;
  gpu.device = {DeviceKind::kCuda, 0};
  EXPECT_THROW(self->broadcast(gpu, 0, stream), InternalError);
  EXPECT_THROW(make_dry_communicator(0, 4)->split(0, 0), InternalError);
}

}  // namespace
}  // namespace farspan
