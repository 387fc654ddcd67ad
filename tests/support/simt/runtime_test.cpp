// Streams, events, copies and device memory of the emulated runtime, and its matrix products.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "support/simt/emulated_kernels.h"
#include "support/simt/sanitizers.h"

namespace farspan::simt {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

__global__ void set_kernel(int* x, int value) { x[threadIdx.x] = value; }
__global__ void copy_kernel(const int* from, int* to) { to[threadIdx.x] = from[threadIdx.x]; }
__global__ void fail_kernel() { __trap(); }

class Streams : public Bench {
 public:
  explicit Streams(std::uint64_t seed) : Bench(seed) {
    FARSPAN_CUDA(cudaStreamCreate(&other_));
    FARSPAN_CUDA(cudaEventCreate(&event_));
  }
  ~Streams() {
    (void)cudaEventDestroy(event_);
    (void)cudaStreamDestroy(other_);
  }
  cudaStream_t other() const { return other_; }
  cudaEvent_t event() const { return event_; }

 private:
  cudaStream_t other_ = nullptr;
  cudaEvent_t event_ = nullptr;
};

// What the other stream finds of what this one does.
int across(std::uint64_t seed, bool with_event) {
  Streams s(seed);
  int* const x = s.put(std::vector<int>(8, 1));
  int* const seen = s.room<int>(8);
  FARSPAN_CUDA(cudaStreamSynchronize(s.stream()));
  cuda::launch(set_kernel, s.shape(1, 8), x, 2);
  if (with_event) {
    FARSPAN_CUDA(cudaEventRecord(s.event(), s.stream()));
    FARSPAN_CUDA(cudaStreamWaitEvent(s.other(), s.event(), 0));
  }
  cuda::launch(copy_kernel, {.grid = 1, .block = 8, .stream = s.other()}, x, seen);
  cuda::launch(set_kernel, s.shape(1, 8), x, 3);
  if (with_event) {
    // The mark stays where it was recorded, although the stream went on.
    FARSPAN_CUDA(cudaEventSynchronize(s.event()));
  }
  FARSPAN_CUDA(cudaDeviceSynchronize());
  return s.get(seen, 8)[0];
}

TEST(SimtStreams, AMissingEventShows) {
  int early = 0, late = 0;
  for (std::uint64_t seed = 1; seed <= 40; ++seed) {
    EXPECT_NE(across(seed, true), 1) << "before the event, seed " << seed;
    const int seen = across(seed, false);
    early += seen == 1 ? 1 : 0;
    late += seen == 3 ? 1 : 0;
  }
  EXPECT_GE(early, 5);
  EXPECT_GE(late, 5);
}

TEST(SimtStreams, WorkOfAStreamKeepsItsOrder) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    Streams s(seed);
    int* const x = s.room<int>(1);
    std::vector<int> seen;
    for (int i = 0; i < 10; ++i) {
      cuda::launch(set_kernel, s.shape(1, 1), x, i);
      seen.push_back(s.get(x, 1)[0]);
    }
    EXPECT_EQ(seen, (std::vector<int>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}));
  }
}

// Work is not done because it was given, and is done because it was asked for often enough.
TEST(SimtStreams, QueriesSayWhatIsDone) {
  int waited = 0;
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    Streams s(seed);
    int* const x = s.room<int>(1);
    EXPECT_EQ(cudaEventQuery(s.event()), cudaSuccess) << "never recorded";
    for (int i = 0; i < 5; ++i) cuda::launch(set_kernel, s.shape(1, 1), x, i);
    FARSPAN_CUDA(cudaEventRecord(s.event(), s.stream()));
    int asked = 0;
    while (cudaEventQuery(s.event()) == cudaErrorNotReady) ++asked;
    waited += asked > 0 ? 1 : 0;
    ASSERT_LT(asked, 1000);
    EXPECT_EQ(cudaStreamQuery(s.stream()), cudaSuccess);
  }
  EXPECT_GE(waited, 15);
}

TEST(SimtStreams, HostFunctionsTakeTheirTurn) {
  Streams s(3);
  int* const x = s.put(std::vector<int>{1});
  int* host = nullptr;
  FARSPAN_CUDA(cudaMallocHost(&host, sizeof(int)));
  FARSPAN_CUDA(cudaMemcpyAsync(host, x, sizeof(int), cudaMemcpyDefault, s.stream()));
  FARSPAN_CUDA(cudaLaunchHostFunc(
      s.stream(), [](void* p) { *static_cast<int*>(p) += 10; }, host));
  FARSPAN_CUDA(cudaMemcpyAsync(x, host, sizeof(int), cudaMemcpyDefault, s.stream()));
  EXPECT_EQ(s.get(x, 1)[0], 11);
  FARSPAN_CUDA(cudaFreeHost(host));
}

TEST(SimtStreams, ErrorsComeOnceAndThenTheDeviceGoesOn) {
  Bench bench;
  EXPECT_THAT(bench.failure(fail_kernel, bench.shape(1, 1)), HasSubstr("__trap"));
  int* const x = bench.put(std::vector<int>{4});
  EXPECT_EQ(bench.get(x, 1)[0], 4);
  // A failure that a destructor met is kept for the next call that may throw.
  int* const y = bench.room<int>(1);
  FARSPAN_CUDA(cudaStreamSynchronize(bench.stream()));
  runtime().seed(2);  // under which the launch does not run at once
  cuda::launch(fail_kernel, bench.shape(1, 1));
  runtime().synchronize_all_quietly();
  EXPECT_THROW(bench.get(y, 1), Error);
  EXPECT_EQ(bench.get(x, 1)[0], 4);
}

// x becomes 10 on the recording stream while the other adds to y, and z is their sum.
__global__ void add_to_kernel(int* x, int y) { *x += y; }
__global__ void sum_kernel(const int* x, const int* y, int* z) { *z = *x + *y; }

TEST(SimtGraphs, RunAgainInTheirOrder) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    Streams s(seed);
    int* const x = s.put(std::vector<int>{1});
    int* const y = s.put(std::vector<int>{100});
    int* const z = s.room<int>(1);
    const cuda::LaunchShape side{.stream = s.other()};
    FARSPAN_CUDA(cudaDeviceSynchronize());
    FARSPAN_CUDA(cudaStreamBeginCapture(s.stream(), cudaStreamCaptureModeThreadLocal));
    cuda::launch(set_kernel, s.shape(1, 1), x, 10);
    FARSPAN_CUDA(cudaEventRecord(s.event(), s.stream()));
    FARSPAN_CUDA(cudaStreamWaitEvent(s.other(), s.event(), 0));
    cuda::launch(add_to_kernel, side, y, 1);
    cuda::launch(add_to_kernel, s.shape(1, 1), x, 5);
    FARSPAN_CUDA(cudaEventRecord(s.event(), s.other()));
    FARSPAN_CUDA(cudaStreamWaitEvent(s.stream(), s.event(), 0));
    cuda::launch(sum_kernel, s.shape(1, 1), x, y, z);
    cudaGraph_t graph = nullptr;
    FARSPAN_CUDA(cudaStreamEndCapture(s.stream(), &graph));
    std::size_t count = 0;
    FARSPAN_CUDA(cudaGraphGetNodes(graph, nullptr, &count));
    EXPECT_EQ(count, 4u);
    cudaGraphExec_t runnable = nullptr;
    FARSPAN_CUDA(cudaGraphInstantiate(&runnable, graph));
    FARSPAN_CUDA(cudaGraphDestroy(graph));
    EXPECT_EQ(s.get(y, 1)[0], 100) << "recorded, not run";
    for (int run = 1; run <= 3; ++run) FARSPAN_CUDA(cudaGraphLaunch(runnable, s.stream()));
    FARSPAN_CUDA(cudaGraphExecDestroy(runnable));
    EXPECT_EQ(s.get(z, 1)[0], 15 + 103);
  }
}

TEST(SimtGraphs, WhatARecordingDoesNotAllowBreaksIt) {
  Streams s(1);
  int* const x = s.room<int>(1);
  cudaGraph_t graph = nullptr;
  const auto broken_by = [&](const std::function<cudaError_t()>& call) {
    FARSPAN_CUDA(cudaStreamBeginCapture(s.stream(), cudaStreamCaptureModeThreadLocal));
    cuda::launch(set_kernel, s.shape(1, 1), x, 1);
    const cudaError_t status = call();
    return cudaStreamEndCapture(s.stream(), &graph) == cudaErrorStreamCaptureInvalidated &&
           status == cudaErrorStreamCaptureUnsupported;
  };
  void* p = nullptr;
  int host = 0;
  EXPECT_TRUE(broken_by([&] { return cudaMalloc(&p, 4); }));
  EXPECT_TRUE(broken_by([&] { return cudaFree(x); }));
  EXPECT_TRUE(broken_by([&] { return cudaStreamSynchronize(s.stream()); }));
  EXPECT_TRUE(broken_by([&] { return cudaEventQuery(s.event()); }));
  EXPECT_TRUE(
      broken_by([&] { return cudaMemcpyAsync(x, &host, 4, cudaMemcpyDefault, s.stream()); }));
  // A side stream that nobody joins.
  EXPECT_FALSE(broken_by([&] {
    FARSPAN_CUDA(cudaEventRecord(s.event(), s.stream()));
    FARSPAN_CUDA(cudaStreamWaitEvent(s.other(), s.event(), 0));
    cuda::launch(add_to_kernel, {.stream = s.other()}, x, 1);
    return cudaSuccess;
  }));
  EXPECT_EQ(graph, nullptr);
  (void)cudaGetLastError();
}

TEST(SimtCopies, PageableMemoryIsStagedAndPinnedMemoryIsNot) {
  int late = 0;
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    Bench bench(seed);
    int* const x = bench.room<int>(1);
    int* const y = bench.room<int>(1);
    int* pinned = nullptr;
    FARSPAN_CUDA(cudaMallocHost(&pinned, sizeof(int)));
    int pageable = *pinned = 1;
    FARSPAN_CUDA(
        cudaMemcpyAsync(x, &pageable, sizeof(int), cudaMemcpyHostToDevice, bench.stream()));
    FARSPAN_CUDA(cudaMemcpyAsync(y, pinned, sizeof(int), cudaMemcpyHostToDevice, bench.stream()));
    pageable = *pinned = 2;  // too early for the second
    EXPECT_EQ(bench.get(x, 1)[0], 1);
    late += bench.get(y, 1)[0] == 2 ? 1 : 0;
    FARSPAN_CUDA(cudaFreeHost(pinned));
  }
  EXPECT_GE(late, 10);
}

TEST(SimtCopies, BytesBeyondTheMemoryAreRefused) {
  Bench bench;
  int* const x = bench.room<int>(4);
  int host[8] = {};
  EXPECT_EQ(cudaMemcpyAsync(x, host, 20, cudaMemcpyDefault, bench.stream()), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpyAsync(host, x + 1, 16, cudaMemcpyDefault, bench.stream()),
            cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpyAsync(x, host, 16, cudaMemcpyDeviceToHost, bench.stream()),
            cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemsetAsync(x, 0, 17, bench.stream()), cudaErrorInvalidValue);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  FARSPAN_CUDA(cudaMemsetAsync(x, 1, 16, bench.stream()));
  EXPECT_THAT(bench.get(x, 4), Each(0x01010101));
}

TEST(SimtMemory, IsCountedAndRunsOut) {
  std::size_t before = 0, after = 0, total = 0;
  FARSPAN_CUDA(cudaMemGetInfo(&before, &total));
  void* p = nullptr;
  FARSPAN_CUDA(cudaMalloc(&p, 1 << 20));
  FARSPAN_CUDA(cudaMemGetInfo(&after, &total));
  EXPECT_EQ(before - after, std::size_t{1} << 20);
  FARSPAN_CUDA(cudaFree(p));
  EXPECT_EQ(cudaMalloc(&p, std::size_t{1} << 50), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaFree(&total), cudaErrorInvalidValue);
  (void)cudaGetLastError();
}

TEST(SimtMemoryDeathTest, HostCodeThatTouchesDeviceMemoryFaults) {
  if (kAddressSanitizer) GTEST_SKIP() << "device memory lies in the heap";
  Bench bench;
  int* const x = bench.put(std::vector<int>{1, 2});
  FARSPAN_CUDA(cudaStreamSynchronize(bench.stream()));
  EXPECT_DEATH(*static_cast<volatile int*>(x + 1) = 3, "byte 4 of 8 bytes of device memory");
  EXPECT_DEATH((void)*static_cast<volatile int*>(x), "Host code may touch device memory");
}

TEST(SimtMemoryDeathTest, AWriteBesideMemoryIsFoundAtItsEnd) {
  if (kAddressSanitizer) GTEST_SKIP() << "AddressSanitizer finds it sooner";
  EXPECT_DEATH(
      {
        Bench bench;
        cuda::launch(set_kernel, bench.shape(1, 3), bench.room<int>(2), 1);
      },
      "memory was written at byte 8 of the 8");
}

}  // namespace
}  // namespace farspan::simt
