// Fragment layouts against the formulas of the PTX ISA ("Warp-level matrix instructions"), which
// the emulator's own code does not share; asynchronous copies.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/cuda/ptx.cuh"
#include "support/simt/emulated_kernels.h"
#include "support/simt/sanitizers.h"

namespace farspan::simt {
namespace {

using ::testing::HasSubstr;

std::vector<float> numbers(std::size_t n, std::uint64_t seed) {
  Disorder random(seed);
  std::vector<float> x(n);
  for (float& v : x) v = __nv_bfloat16(static_cast<float>(random.below(2001)) / 500.0f - 2.0f);
  return x;
}

// Element i of the eight, four and four values that a lane holds of A, B and C: its row and column,
// in the words of the PTX ISA for .m16n8k16 with .bf16.
struct Place {
  int row, column;
};
Place place_in_a(int lane, int i) {
  const int group = lane >> 2, thread_in_group = lane % 4;
  const int row = (0 <= i && i < 2) || (4 <= i && i < 6) ? group : group + 8;
  const int column = i < 4 ? thread_in_group * 2 + (i & 1) : thread_in_group * 2 + (i & 1) + 8;
  return {row, column};
}
Place place_in_b(int lane, int i) {
  const int group = lane >> 2, thread_in_group = lane % 4;
  return {i < 2 ? thread_in_group * 2 + (i & 1) : thread_in_group * 2 + (i & 1) + 8, group};
}
Place place_in_c(int lane, int i) {
  const int group = lane >> 2, thread_in_group = lane % 4;
  return {i < 2 ? group : group + 8, thread_in_group * 2 + (i & 1)};
}

struct Fragments {
  std::uint32_t a[4], b[2];
  float c[4];
};
__global__ void mma_kernel(Fragments* lanes) {
  Fragments& mine = lanes[threadIdx.x];
  cuda::mma_bf16_16816(mine.c, mine.a, mine.b[0], mine.b[1]);
}

void set_half(std::uint32_t* registers, int i, float x) {
  registers[i / 2] |= static_cast<std::uint32_t>(__nv_bfloat16(x).bits) << (i % 2 * 16);
}

TEST(SimtTensorCore, MmaLayoutsAreThoseOfThePtxIsa) {
  const std::vector<float> a = numbers(16 * 16, 1), b = numbers(16 * 8, 2), c = numbers(16 * 8, 3);
  std::vector<Fragments> lanes(32);
  for (int l = 0; l < 32; ++l) {
    Fragments& f = lanes[static_cast<std::size_t>(l)] = {};
    for (int i = 0; i < 8; ++i) {
      const auto [row, column] = place_in_a(l, i);
      set_half(f.a, i, a[static_cast<std::size_t>(row * 16 + column)]);
    }
    for (int i = 0; i < 4; ++i) {
      const auto [k, n] = place_in_b(l, i);
      set_half(f.b, i, b[static_cast<std::size_t>(k * 8 + n)]);
      const auto [row, column] = place_in_c(l, i);
      f.c[i] = c[static_cast<std::size_t>(row * 8 + column)];
    }
  }
  Bench bench;
  Fragments* const there = bench.put(lanes);
  cuda::launch(mma_kernel, bench.shape(1, 32), there);
  lanes = bench.get(there, 32);
  for (int l = 0; l < 32; ++l)
    for (int i = 0; i < 4; ++i) {
      const auto [row, column] = place_in_c(l, i);
      double expected = c[static_cast<std::size_t>(row * 8 + column)];
      for (int k = 0; k < 16; ++k)
        expected += double{a[static_cast<std::size_t>(row * 16 + k)]} *
                    double{b[static_cast<std::size_t>(k * 8 + column)]};
      EXPECT_NEAR(lanes[static_cast<std::size_t>(l)].c[i], expected, 1e-5)
          << "lane " << l << ", " << i;
    }
}

struct Loaded {
  std::uint32_t plain[4], transposed[4];
};
__global__ void ldmatrix_kernel(const std::uint16_t* in, Loaded* out) {
  auto* const shared = cuda::shared_memory<std::uint16_t>();
  const int lane = static_cast<int>(threadIdx.x);
  // Row l % 8 of matrix l / 8, matrices in a 16-wide tile: left and right, above and below.
  for (int i = 0; i < 8; ++i) shared[lane * 8 + i] = in[lane * 8 + i];
  __syncwarp();
  cuda::ldmatrix_x4(out[lane].plain, shared + lane * 8);
  cuda::ldmatrix_x4_trans(out[lane].transposed, shared + lane * 8);
}

TEST(SimtTensorCore, LdmatrixLayoutsAreThoseOfThePtxIsa) {
  std::vector<std::uint16_t> in(4 * 8 * 8);
  for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<std::uint16_t>(i * 7 + 1);
  Bench bench;
  auto* const out = bench.room<Loaded>(32);
  cuda::launch(ldmatrix_kernel, bench.shape(1, 32, 512), bench.put(in), out);
  const std::vector<Loaded> got = bench.get(out, 32);
  for (std::size_t l = 0; l < 32; ++l)
    for (std::size_t m = 0; m < 4; ++m)
      for (std::size_t half = 0; half < 2; ++half) {
        // Thread T holds elements 2 (T % 4) and 2 (T % 4) + 1 of row T / 4.
        const std::size_t row = l / 4, column = 2 * (l % 4) + half, shift = 16 * half;
        EXPECT_EQ(got[l].plain[m] >> shift & 0xffffu, in[m * 64 + row * 8 + column]);
        EXPECT_EQ(got[l].transposed[m] >> shift & 0xffffu, in[m * 64 + column * 8 + row]);
      }
}

// Each lane stores a row, and loads that of the next.
__global__ void ldmatrix_of_others_kernel(std::uint32_t* out, bool synchronised) {
  auto* const shared = cuda::shared_memory<std::uint16_t>();
  const int lane = static_cast<int>(threadIdx.x), next = (lane + 1) % 32;
  for (int i = 0; i < 8; ++i) shared[lane * 8 + i] = 7;
  if (synchronised) __syncwarp();
  std::uint32_t r[4];
  cuda::ldmatrix_x4(r, shared + next * 8);
  for (int i = 0; i < 4; ++i) out[lane * 4 + i] = r[i];
}

TEST(SimtTensorCore, LdmatrixDoesNotOrderStoresOfOtherLanes) {
  Bench bench;
  auto* const out = bench.room<std::uint32_t>(128);
  cuda::launch(ldmatrix_of_others_kernel, bench.shape(1, 32, 512), out, true);
  EXPECT_THAT(bench.get(out, 128), ::testing::Each(0x00070007u));
  cuda::launch(ldmatrix_of_others_kernel, bench.shape(1, 32, 512), out, false);
  EXPECT_THAT(bench.get(out, 128), ::testing::Contains(::testing::Ne(0x00070007u)));
}

__global__ void some_lanes_kernel(float* out) {
  if (threadIdx.x == 3) return;
  float d[4] = {};
  const std::uint32_t a[4] = {};
  cuda::mma_bf16_16816(d, a, 0, 0);
  *out = d[0];
}
__global__ void ldmatrix_at_kernel(int offset) {
  std::uint32_t r[4];
  cuda::ldmatrix_x4(r, cuda::shared_memory<unsigned char>() + offset);
}
__global__ void copy_at_kernel(const unsigned char* from, int offset) {
  cuda::cp_async_16(cuda::shared_memory<unsigned char>() + offset, from, true);
}

TEST(SimtTensorCore, WhatTheInstructionsDoNotAllowIsReported) {
  Bench bench;
  EXPECT_THAT(bench.failure(some_lanes_kernel, bench.shape(1, 32), bench.room<float>(1)),
              HasSubstr("mma.sync"));
  EXPECT_THAT(bench.failure(some_lanes_kernel, bench.shape(1, 16), bench.room<float>(1)),
              HasSubstr("mma.sync needs lanes 0xffffffff"));
  EXPECT_EQ(bench.failure(ldmatrix_at_kernel, bench.shape(1, 32, 512), 16), "");
  EXPECT_THAT(bench.failure(ldmatrix_at_kernel, bench.shape(1, 32, 512), 8),
              HasSubstr("not a multiple of 16"));
  EXPECT_THAT(bench.failure(ldmatrix_at_kernel, bench.shape(1, 32, 512), 512),
              HasSubstr("ldmatrix of 16 bytes at byte 512 of 512 of shared memory"));
  unsigned char* const from = bench.put(std::vector<unsigned char>(64, 1));
  EXPECT_EQ(bench.failure(copy_at_kernel, bench.shape(1, 1, 32), from + 48, 16), "");
  EXPECT_THAT(bench.failure(copy_at_kernel, bench.shape(1, 1, 32), from, 24),
              HasSubstr("not a multiple of 16"));
  EXPECT_THAT(bench.failure(copy_at_kernel, bench.shape(1, 1, 32), from + 8, 16),
              HasSubstr("not a multiple of 16"));
  EXPECT_THAT(bench.failure(copy_at_kernel, bench.shape(1, 1, 32), from, 32),
              HasSubstr("shared memory"));
  EXPECT_THAT(bench.failure(copy_at_kernel, bench.shape(1, 1, 32), from + 64, 0),
              HasSubstr("cp.async reads 16 bytes"));
}

// 64 threads copy two tiles of 16 bytes each, and each reads what its neighbour has copied.
template <bool kWait, bool kBarrier, int kPending>
__global__ void copies_kernel(const int4* in, int* out) {
  auto* const tiles = cuda::shared_memory<int4>();
  const int me = static_cast<int>(threadIdx.x), other = me ^ 32;
  for (int tile = 0; tile < 2; ++tile) {
    cuda::cp_async_16(tiles + 64 * tile + me, in + 64 * tile + me, true);
    cuda::cp_async_commit();
  }
  if (kWait) cuda::cp_async_wait<kPending>();
  if (kBarrier) __syncthreads();
  out[me] = tiles[other].x;
  out[64 + me] = tiles[64 + other].x;
}

TEST(SimtAsyncCopies, AreThereAfterWaitAndBarrierOnly) {
  std::vector<int4> in(128);
  for (int i = 0; i < 128; ++i) in[static_cast<std::size_t>(i)] = {i, i, i, i};
  std::vector<int> expected;
  for (int i = 0; i < 128; ++i) expected.push_back(i ^ 32);
  const auto first_tile = [](std::vector<int> x) {
    return std::vector<int>(x.begin(), x.begin() + 64);
  };
  int late = 0;
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    Bench bench(seed);
    const int4* const from = bench.put(in);
    int* const out = bench.room<int>(128);
    const auto run = [&](void (*kernel)(const int4*, int*)) {
      cuda::launch(kernel, bench.shape(1, 64, 2048), from, out);
      return bench.get(out, 128);
    };
    EXPECT_EQ(run(copies_kernel<true, true, 0>), expected) << "seed " << seed;
    EXPECT_EQ(first_tile(run(copies_kernel<true, true, 1>)), first_tile(expected));
    EXPECT_NE(run(copies_kernel<true, true, 1>), expected) << "the second group is waited for";
    EXPECT_NE(run(copies_kernel<false, true, 0>), expected) << "nobody waits";
    EXPECT_NE(run(copies_kernel<true, false, 0>), expected) << "no barrier";
    const std::vector<int> early = run(copies_kernel<false, true, 0>);
    late += std::count(early.begin(), early.end(), -1) > 0 ? 1 : 0;
  }
  EXPECT_EQ(late, 20);
}

__global__ void zeros_kernel(const int4* nowhere, int* out) {
  auto* const tile = cuda::shared_memory<int4>();
  cuda::cp_async_16(tile, nowhere, false);
  cuda::cp_async_commit();
  cuda::cp_async_wait<0>();
  *out = tile->x | tile->w;
}

TEST(SimtAsyncCopies, WhatIsNotValidIsZerosAndNotRead) {
  Bench bench;
  int* const out = bench.room<int>(1);
  cuda::launch(zeros_kernel, bench.shape(1, 1, 16), reinterpret_cast<const int4*>(16), out);
  EXPECT_EQ(bench.get(out, 1)[0], 0);
}

__global__ void exp2_kernel(float* x) { x[threadIdx.x] = cuda::exp2_approx(x[threadIdx.x]); }
__global__ void pack_kernel(const float* x, std::uint32_t* out) {
  *out = cuda::pack_bf16(x[0], x[1]);
}

TEST(SimtTensorCore, ScalarsAreAsTheirContractsSay) {
  Bench bench;
  const float inf = INFINITY;
  float* const x = bench.put(std::vector<float>{0, 10, -1.5f, -inf, inf, -130, NAN});
  cuda::launch(exp2_kernel, bench.shape(1, 7), x);
  const std::vector<float> y = bench.get(x, 7);
  EXPECT_EQ((std::vector<float>(y.begin(), y.begin() + 6)),
            (std::vector<float>{1, 1024, std::exp2(-1.5f), 0, inf, 0}));
  EXPECT_TRUE(std::isnan(y[6]));
  // To nearest even: 1 + 2^-8 lies in the middle of 1 and 1 + 2^-7.
  const float* const pair = bench.put(std::vector<float>{1 + 0x1p-8f, -(1 + 3 * 0x1p-8f)});
  auto* const packed = bench.room<std::uint32_t>(1);
  cuda::launch(pack_kernel, bench.shape(1, 1), pair, packed);
  EXPECT_EQ(bench.get(packed, 1)[0], 0xbf823f80u);
}

}  // namespace
}  // namespace farspan::simt
