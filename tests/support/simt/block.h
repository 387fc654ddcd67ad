// Runs the blocks of one kernel, one after the other in a random order; the threads of a block
// alternate at barriers and warp instructions only, who goes first being random each time.
//
//   run_kernel({.kernel = f, .grid = 4, .block = 128, .invoke = call, .args = &tuple}, disorder);
//
// Throws Error(kInternal), naming kernel, block and thread, for what a GPU would not survive or
// leaves undefined: barriers that some threads do not reach, lanes at different warp instructions,
// accesses outside memory, unaligned vectors.
#pragma once

#include <cstddef>
#include <string>

#include "support/simt/random.h"
#include "support/simt/vector_types.h"

namespace farspan::simt {

struct KernelRun {
  const void* kernel = nullptr;  // its address, for its name
  dim3 grid, block;
  std::size_t shared_bytes = 0;
  void (*invoke)(const void* args) = nullptr;  // what each thread does
  const void* args = nullptr;
};

// One host thread at a time.
void run_kernel(const KernelRun& run, Disorder& disorder);

// For signal handlers: whether a thread of a kernel runs on this host thread, and where.
bool kernel_is_running();
std::string running_place();  // "kernel f, block (0, 0, 0), thread (5, 0, 0)"
// Whether the address lies in a stack of the running thread (or in the guard page below).
bool in_running_stack(const void* address);
// Ends the running thread and its kernel with that error; does not return to the thread. May run on
// any stack.
[[noreturn]] void abandon(const std::string& what);
// Where abandon() may be called when the thread's own stack is not fit for it.
void* top_of_running_stack();

}  // namespace farspan::simt
