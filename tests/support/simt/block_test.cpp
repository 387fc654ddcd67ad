// That the emulator catches what a GPU leaves undefined, and keeps what it promises.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <set>

#include "support/simt/emulated_kernels.h"
#include "support/simt/sanitizers.h"

namespace farspan::simt {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;

constexpr int kSeeds = 20;

// Each thread takes what its neighbour has put down.
__global__ void neighbour_kernel(int* out, bool synchronised) {
  int* const shared = cuda::shared_memory<int>();
  shared[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (synchronised) __syncthreads();
  out[blockIdx.x * blockDim.x + threadIdx.x] = shared[(threadIdx.x + 33) % blockDim.x];
}

TEST(SimtBlock, AMissingBarrierShows) {
  for (std::uint64_t seed = 1; seed <= kSeeds; ++seed) {
    Bench bench(seed);
    int* const out = bench.room<int>(4 * 100);
    std::vector<int> expected;
    for (int i = 0; i < 400; ++i) expected.push_back((i % 100 + 33) % 100);
    cuda::launch(neighbour_kernel, bench.shape(4, 100, 400), out, true);
    EXPECT_EQ(bench.get(out, 400), expected) << "seed " << seed;
    cuda::launch(neighbour_kernel, bench.shape(4, 100, 400), out, false);
    EXPECT_NE(bench.get(out, 400), expected) << "seed " << seed;
  }
}

// A ring of one slot per warp: the second barrier keeps a fast warp from writing what a slow one
// has yet to read.
__global__ void two_rounds_kernel(int* out, bool second_barrier) {
  __shared__ int slot[8];
  const int warp = static_cast<int>(threadIdx.x) / 32, warps = static_cast<int>(blockDim.x) / 32;
  int sum = 0;
  for (int round = 0; round < 2; ++round) {
    if (threadIdx.x % 32 == 0) slot[warp] = 10 * round + warp;
    __syncthreads();
    for (int i = 0; i < 4; ++i) __syncwarp();  // others may overtake here
    sum += slot[(warp + 1) % warps];
    if (second_barrier) __syncthreads();
  }
  out[threadIdx.x] = sum;
}

TEST(SimtBlock, AWarpThatRunsAheadShows) {
  int caught = 0;
  std::vector<int> expected;
  for (int i = 0; i < 256; ++i) expected.push_back(10 + 2 * ((i / 32 + 1) % 8));
  for (std::uint64_t seed = 1; seed <= kSeeds; ++seed) {
    Bench bench(seed);
    int* const out = bench.room<int>(256);
    cuda::launch(two_rounds_kernel, bench.shape(1, 256), out, true);
    EXPECT_EQ(bench.get(out, 256), expected) << "seed " << seed;
    cuda::launch(two_rounds_kernel, bench.shape(1, 256), out, false);
    caught += bench.get(out, 256) != expected ? 1 : 0;
  }
  EXPECT_GE(caught, kSeeds - 2);
}

__global__ void warp_exchange_kernel(int* out, bool synchronised) {
  int* const shared = cuda::shared_memory<int>();
  shared[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (synchronised) __syncwarp();
  out[threadIdx.x] = shared[threadIdx.x ^ 1];
}

TEST(SimtBlock, AMissingWarpBarrierShows) {
  for (std::uint64_t seed = 1; seed <= kSeeds; ++seed) {
    Bench bench(seed);
    int* const out = bench.room<int>(64);
    std::vector<int> expected;
    for (int i = 0; i < 64; ++i) expected.push_back(i ^ 1);
    cuda::launch(warp_exchange_kernel, bench.shape(1, 64, 256), out, true);
    EXPECT_EQ(bench.get(out, 64), expected);
    cuda::launch(warp_exchange_kernel, bench.shape(1, 64, 256), out, false);
    EXPECT_NE(bench.get(out, 64), expected);
  }
}

__global__ void order_kernel(int* out, int* count) {
  for (int i = 0; i < 3; ++i) {
    out[atomicAdd(count, 1)] = static_cast<int>(blockIdx.x * 1000 + threadIdx.x);
    __syncthreads();
  }
}

TEST(SimtBlock, OrderIsRandomAndASeedRepeatsIt) {
  const auto order = [](std::uint64_t seed) {
    Bench bench(seed);
    int* const out = bench.room<int>(3 * 2 * 64);
    int* const count = bench.put(std::vector<int>{0});
    cuda::launch(order_kernel, bench.shape(2, 64), out, count);
    return bench.get(out, 3 * 2 * 64);
  };
  const std::vector<int> first = order(5);
  EXPECT_EQ(order(5), first);
  std::set<std::vector<int>> orders;
  for (std::uint64_t seed = 1; seed <= 10; ++seed) orders.insert(order(seed));
  EXPECT_EQ(orders.size(), 10u);
  // From barrier to barrier, too.
  EXPECT_NE(std::vector<int>(first.begin(), first.begin() + 64),
            std::vector<int>(first.begin() + 64, first.begin() + 128));
}

__global__ void half_at_barrier_kernel() {
  if (threadIdx.x % 32 < 16)
    __syncthreads();
  else
    __syncwarp();
}
__global__ void some_leave_kernel(int* out) {
  if (threadIdx.x >= 40) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}
__global__ void two_masks_kernel() {
  __shfl_sync(threadIdx.x < 16 ? 0xffffffffu : 0xfffffffeu, 1, 0);
}
__global__ void not_in_mask_kernel() { __syncwarp(0xfu); }

TEST(SimtBlock, ThreadsThatPartAreReported) {
  Bench bench;
  EXPECT_THAT(
      bench.failure(half_at_barrier_kernel, bench.shape(3, 64)),
      AllOf(HasSubstr("half_at_barrier_kernel, block ("), HasSubstr("deadlock: 64 of 64"),
            HasSubstr("at __syncthreads"), HasSubstr("at __syncwarp with mask 0xffffffff")));
  EXPECT_THAT(bench.failure(two_masks_kernel, bench.shape(1, 32)),
              HasSubstr("__shfl_sync with mask 0xfffffffe"));
  EXPECT_THAT(bench.failure(not_in_mask_kernel, bench.shape(1, 32)),
              HasSubstr("is not in the mask 0x0000000f"));
  int* const out = bench.put(std::vector<int>(64, 0));
  EXPECT_EQ(bench.failure(some_leave_kernel, bench.shape(1, 64), out), "");
  const std::vector<int> got = bench.get(out, 64);
  EXPECT_EQ(std::accumulate(got.begin(), got.end(), 0), 40);
}

__global__ void garbage_kernel(float* out) {
  out[threadIdx.x] = cuda::shared_memory<float>()[threadIdx.x];
  cuda::shared_memory<float>()[threadIdx.x] = 1;  // not left for the next block
}

TEST(SimtBlock, NewMemoryIsGarbage) {
  Bench bench;
  float* const out = bench.room<float>(32);
  EXPECT_THAT(bench.get(out, 32), Each(::testing::IsNan()));
  cuda::launch(garbage_kernel, bench.shape(5, 32, 128), out);
  EXPECT_THAT(bench.get(out, 32), Each(::testing::IsNan()));
}

__global__ void collectives_kernel(int* out) {
  const int lane = static_cast<int>(threadIdx.x);
  out[lane] = __shfl_sync(kWholeWarp, lane, lane + 3);
  out[32 + lane] = __shfl_up_sync(kWholeWarp, lane, 2);
  out[64 + lane] = __shfl_down_sync(kWholeWarp, lane, 2, 8);
  out[96 + lane] = __shfl_xor_sync(kWholeWarp, lane, 5);
  out[128 + lane] = static_cast<int>(__ballot_sync(kWholeWarp, lane % 3 == 0));
  out[160 + lane] = __any_sync(kWholeWarp, lane == 9) + 2 * __all_sync(kWholeWarp, lane < 32) +
                    4 * __all_sync(kWholeWarp, lane != 4);
  out[192 + lane] = __syncthreads_count(lane > 4) + 100 * __syncthreads_or(lane == 3) +
                    1000 * __syncthreads_and(lane > 0);
  if (lane < 8) out[224 + lane] = __shfl_xor_sync(0xffu, lane, 1);
}

TEST(SimtBlock, CollectivesGiveWhatCudaSays) {
  Bench bench;
  int* const out = bench.room<int>(256);
  cuda::launch(collectives_kernel, bench.shape(1, 32), out);
  const std::vector<int> got = bench.get(out, 256);
  unsigned thirds = 0;
  for (int l = 0; l < 32; l += 3) thirds |= 1u << l;
  for (int l = 0; l < 32; ++l) {
    const auto at = [&](int row) { return got[static_cast<std::size_t>(32 * row + l)]; };
    EXPECT_EQ(at(0), (l + 3) % 32);
    EXPECT_EQ(at(1), l < 2 ? l : l - 2);
    EXPECT_EQ(at(2), l % 8 >= 6 ? l : l + 2);
    EXPECT_EQ(at(3), l ^ 5);
    EXPECT_EQ(static_cast<unsigned>(at(4)), thirds);
    EXPECT_EQ(at(5), 3);
    EXPECT_EQ(at(6), 127);
    if (l < 8) {
      EXPECT_EQ(at(7), l ^ 1);
    }
  }
}

__global__ void write_at_kernel(int* out, int at) {
  if (threadIdx.x == 5) out[at] = 7;
}
__global__ void write_shared_kernel(int at) {
  if (threadIdx.x == 5) cuda::shared_memory<int>()[at] = 7;
}
__global__ void read_vector_kernel(const float* in, float4* out) {
  *out = *reinterpret_cast<const float4*>(in + threadIdx.x);
}
__global__ void index_kernel(int* out, int at) {
  __shared__ int table[4];
  table[at] = 1;
  *out = table[0];
}
__global__ void divide_kernel(int* out, int by) { *out = 5 / by; }
__global__ void recurse_kernel(int* out) {
  volatile unsigned char room[1 << 20];
  room[0] = 1;
  *out = room[0];
}

TEST(SimtBlock, AccessesOutsideMemoryAreReported) {
  if (kAddressSanitizer) GTEST_SKIP() << "AddressSanitizer reports them and ends the program";
  Bench bench;
  int* const out = bench.put(std::vector<int>(64, 0));
  EXPECT_THAT(
      bench.failure(write_at_kernel, bench.shape(3, 32), out, 64),
      AllOf(HasSubstr("write_at_kernel, block ("), HasSubstr("thread (5, 0, 0) of (32, 1, 1)"),
            HasSubstr("byte 256 of 256 bytes of device memory")));
  EXPECT_THAT(bench.failure(write_at_kernel, bench.shape(1, 32), nullptr, 0), HasSubstr("address"));
  EXPECT_THAT(bench.failure(write_shared_kernel, bench.shape(1, 32, 100), 25),
              HasSubstr("wrote to byte 100 of its 100 bytes of shared memory"));
  EXPECT_THAT(bench.failure(write_shared_kernel, bench.shape(1, 32, 100), -1),
              HasSubstr("wrote to byte"));
  EXPECT_THAT(bench.failure(recurse_kernel, bench.shape(1, 1), out), HasSubstr("stack"));
  // And the device goes on.
  EXPECT_EQ(bench.failure(write_at_kernel, bench.shape(1, 32), out, 63), "");
  EXPECT_EQ(bench.get(out, 64)[63], 7);
}

TEST(SimtBlock, WhatTheCompilerChecksIsReported) {
  if (kAddressSanitizer) GTEST_SKIP() << "UndefinedBehaviorSanitizer reports it";
  Bench bench;
  float* const in = bench.put(std::vector<float>(64, 1));
  auto* const out = bench.room<float4>(1);
  EXPECT_EQ(bench.failure(read_vector_kernel, bench.shape(1, 1), in + 4, out), "");
  EXPECT_THAT(bench.failure(read_vector_kernel, bench.shape(1, 2), in, out),
              AllOf(HasSubstr("read_vector_kernel"), HasSubstr("thread (1, 0, 0)"),
                    HasSubstr("unaligned")));
  auto* const number = bench.room<int>(1);
  EXPECT_EQ(bench.failure(index_kernel, bench.shape(1, 1), number, 3), "");
  EXPECT_THAT(bench.failure(index_kernel, bench.shape(1, 1), number, 4), HasSubstr("index"));
  EXPECT_THAT(bench.failure(divide_kernel, bench.shape(1, 1), number, 0),
              ::testing::AnyOf(HasSubstr("division"), HasSubstr("check of the compiler")));
}

TEST(SimtBlock, LaunchesThatCudaRefuses) {
  Bench bench;
  int* const out = bench.room<int>(1);
  EXPECT_THAT(bench.failure(write_at_kernel, bench.shape(0, 32), out, 0),
              HasSubstr("invalid configuration"));
  EXPECT_THAT(bench.failure(write_at_kernel, bench.shape(1, 1025), out, 0),
              HasSubstr("invalid configuration"));
  EXPECT_THAT(bench.failure(write_at_kernel, bench.shape(1, 32, 228 << 10), out, 0),
              HasSubstr("invalid argument"));
}

}  // namespace
}  // namespace farspan::simt
