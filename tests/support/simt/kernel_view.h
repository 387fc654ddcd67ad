// What the code of a kernel asks of the emulator. Everything here is called by the thread that runs
// (one at a time, on a fiber of its own) and may switch to another.
//
//   block_barrier();                                          // __syncthreads
//   warp_call("__syncwarp", mask, nullptr, complete);         // what the lanes of a warp do
//   together fail("out of range");                                     // ends the kernel, with
//   coordinates
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "support/simt/vector_types.h"

namespace farspan::simt {

inline constexpr int kWarpSize = 32;
inline constexpr std::uint32_t kWholeWarp = 0xffffffffu;
// Every byte of memory that nobody has written: a NaN in each floating-point type, -1 in integers.
inline constexpr int kGarbage = 0xff;

struct ThreadView {
  uint3 index{};
  std::uint32_t lane = 0;
};

struct BlockView {
  uint3 index{};
  dim3 block_dim, grid_dim;
  std::byte* shared = nullptr;  // dynamic shared memory
  std::size_t shared_bytes = 0;
};

// The thread that runs and its block. Globals, because kernels name them without an argument.
extern ThreadView* running_thread;
extern BlockView running_block;

// Ends the kernel with an error that names kernel, block and thread.
[[noreturn]] void fail(const std::string& what);

// Until every thread of the block that has not left is here. Returns how many came with a predicate
// that is not 0.
int block_barrier(int predicate = 0);

// The lanes of a warp at one instruction: lane l brought args[l]; others have nullptr.
struct WarpCall {
  std::uint32_t lanes;
  void* args[kWarpSize];
};
using Complete = void (*)(const WarpCall&);

// Until every lane of `mask` that has not left is here with the same mask and instruction; then
// `complete` runs, once. An instruction of the whole warp fails when a lane is missing.
void warp_call(const char* name, std::uint32_t mask, void* args, Complete complete,
               bool needs_all = false);

// cp.async: the destination is garbage from now on, and is written at some moment before the wait
// that covers the copy's group returns.
void copy_async(void* smem, const void* gmem, bool valid);
void copy_async_commit();
void copy_async_wait(int pending_groups);

// Fails unless [address, address + bytes) is memory of the kernel at a multiple of `alignment`.
void require_shared(const void* address, std::size_t bytes, std::size_t alignment,
                    const char* instruction);

}  // namespace farspan::simt
