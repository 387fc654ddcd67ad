#include "data/prefetch.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <stdexcept>

namespace farspan {
namespace {

using namespace std::chrono_literals;

TEST(Prefetcher, KeepsOrder) {
  Prefetcher<std::unique_ptr<std::int64_t>> p(
      [](std::int64_t i) { return std::make_unique<std::int64_t>(i * i); }, 5, 3);
  for (std::int64_t i = 5; i < 500; ++i) {
    EXPECT_EQ(p.next_index(), i);
    EXPECT_EQ(*p.next(), i * i);
  }
}

TEST(Prefetcher, NeverMakesMoreThanDepthAhead) {
  std::atomic<std::int64_t> made{0};
  std::int64_t taken = 0;
  Prefetcher<std::int64_t> p([&](std::int64_t i) { return ++made, i; }, 0, 2);
  for (int r = 0; r < 20; ++r) {
    std::this_thread::sleep_for(2ms);
    EXPECT_LE(made, taken + 2);
    p.next();
    ++taken;
  }
  for (int wait = 0; p.ready() < 2 && wait < 1000; ++wait) std::this_thread::sleep_for(1ms);
  EXPECT_EQ(p.ready(), 2) << "works ahead while nobody asks";
}

TEST(Prefetcher, ErrorsArriveInTheirPlace) {
  Prefetcher<std::int64_t> p(
      [](std::int64_t i) {
        if (i == 3) throw std::runtime_error("no sample 3");
        return i;
      },
      0, 8);
  for (std::int64_t i = 0; i < 3; ++i) EXPECT_EQ(p.next(), i);
  EXPECT_THROW(p.next(), std::runtime_error);
  EXPECT_THROW(p.next(), std::runtime_error) << "it stays";
  EXPECT_EQ(p.next_index(), 3);
  p.restart(4);
  EXPECT_EQ(p.next(), 4);
}

TEST(Prefetcher, RestartsAnywhereAndDropsWhatWasMade) {
  std::atomic<int> inside{0};
  Prefetcher<std::int64_t> p(
      [&](std::int64_t i) {
        EXPECT_EQ(++inside, 1) << "two calls at a time";
        if (i % 7 == 0) std::this_thread::sleep_for(1ms);
        --inside;
        return i;
      },
      0, 4);
  for (std::int64_t r = 0; r < 200; ++r) {
    const std::int64_t start = (r * 7919) % 1000;
    p.restart(start);
    for (std::int64_t i = start; i < start + r % 5; ++i) ASSERT_EQ(p.next(), i) << "restart " << r;
  }
}

TEST(Prefetcher, EndsAtItsEnd) {
  std::atomic<std::int64_t> last{-1};
  Prefetcher<std::int64_t> p([&](std::int64_t i) { return last = i; }, 0, 4, 6);
  for (std::int64_t i = 0; i < 6; ++i) EXPECT_EQ(p.next(), i);
  EXPECT_THROW(p.next(), InternalError);
  EXPECT_EQ(last, 5) << "nothing is made past the end";
}

// The destructor returns while the queue is full, while a call is under way, and before the first.
TEST(Prefetcher, StopsCleanly) {
  for (int r = 0; r < 50; ++r) {
    Prefetcher<int> p(
        [&](std::int64_t) {
          std::this_thread::sleep_for(std::chrono::microseconds(100 * (r % 4)));
          return 1;
        },
        0, 1 + r % 3);
    if (r % 2) p.next();
    if (r % 5 == 0) std::this_thread::sleep_for(1ms);
  }
}

TEST(Prefetcher, StopsAfterAnError) {
  for (int r = 0; r < 20; ++r)
    Prefetcher<int> p([](std::int64_t) -> int { throw std::runtime_error("always"); }, 0, 2);
}

}  // namespace
}  // namespace farspan
