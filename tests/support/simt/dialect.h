// CUDA's words in kernels: qualifiers, indices, barriers, votes and shuffles.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "support/simt/kernel_view.h"

#define __global__
#define __device__
#define __host__
// Blocks run one after the other, so one copy serves all; what a block leaves in it is not cleared.
#define __shared__ static
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__

#define threadIdx (::farspan::simt::running_thread->index)
#define blockIdx (::farspan::simt::running_block.index)
#define blockDim (::farspan::simt::running_block.block_dim)
#define gridDim (::farspan::simt::running_block.grid_dim)
inline constexpr int warpSize = farspan::simt::kWarpSize;

inline void __syncthreads() { farspan::simt::block_barrier(); }
inline int __syncthreads_count(int predicate) { return farspan::simt::block_barrier(predicate); }
inline int __syncthreads_or(int predicate) { return farspan::simt::block_barrier(predicate) > 0; }
inline int __syncthreads_and(int predicate) {
  return farspan::simt::block_barrier(!predicate) == 0;
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
[[noreturn]] inline void __trap() { farspan::simt::fail("__trap"); }

namespace farspan::simt {

struct Vote {
  int predicate;
  unsigned result;
};

struct Shuffle {
  const void* in;
  void* out;
  int size;
  int from;  // lane
};

inline void complete_barrier(const WarpCall&) {}

inline void complete_vote(const WarpCall& call) {
  unsigned bits = 0;
  for (int l = 0; l < kWarpSize; ++l)
    if (call.args[l] != nullptr && static_cast<Vote*>(call.args[l])->predicate != 0)
      bits |= 1u << l;
  for (void* const args : call.args)
    if (args != nullptr) static_cast<Vote*>(args)->result = bits;
}

// A lane that does not take part gives garbage, as its value is undefined.
inline void complete_shuffle(const WarpCall& call) {
  for (void* const args : call.args) {
    if (args == nullptr) continue;
    const auto* const to = static_cast<Shuffle*>(args);
    const auto* const from = static_cast<const Shuffle*>(call.args[to->from]);
    if (from == nullptr)
      std::memset(to->out, kGarbage, static_cast<std::size_t>(to->size));
    else
      std::memcpy(to->out, from->in, static_cast<std::size_t>(to->size));
  }
}

template <typename T>
T shuffle(const char* name, unsigned mask, const T& value, int from) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  T result;
  Shuffle args{&value, &result, sizeof(T), from};
  warp_call(name, mask, &args, complete_shuffle);
  return result;
}

inline unsigned vote(const char* name, unsigned mask, int predicate) {
  Vote args{predicate, 0};
  warp_call(name, mask, &args, complete_vote);
  return args.result;
}

inline int my_lane() { return static_cast<int>(running_thread->lane); }

}  // namespace farspan::simt

inline void __syncwarp(unsigned mask = farspan::simt::kWholeWarp) {
  farspan::simt::warp_call("__syncwarp", mask, nullptr, farspan::simt::complete_barrier);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return farspan::simt::vote("__ballot_sync", mask, predicate);
}
inline int __any_sync(unsigned mask, int predicate) {
  return farspan::simt::vote("__any_sync", mask, predicate) != 0;
}
inline int __all_sync(unsigned mask, int predicate) {
  return farspan::simt::vote("__all_sync", mask, !predicate) == 0;
}

// CUDA C++ Programming Guide, "Warp Shuffle Functions": segments of `width` lanes; a source outside
// the segment is the lane itself (up, down, xor beyond its end), or taken modulo width.
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int lane = farspan::simt::my_lane(), base = lane & ~(width - 1);
  return farspan::simt::shuffle("__shfl_sync", mask, value, base | (source & (width - 1)));
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = farspan::simt::my_lane(), base = lane & ~(width - 1);
  const int from = lane - static_cast<int>(delta);
  return farspan::simt::shuffle("__shfl_up_sync", mask, value, from < base ? lane : from);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = farspan::simt::my_lane(), end = (lane & ~(width - 1)) + width;
  const int from = lane + static_cast<int>(delta);
  return farspan::simt::shuffle("__shfl_down_sync", mask, value, from >= end ? lane : from);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  const int lane = farspan::simt::my_lane(), end = (lane & ~(width - 1)) + width;
  const int from = lane ^ bits;
  return farspan::simt::shuffle("__shfl_xor_sync", mask, value, from >= end ? lane : from);
}
