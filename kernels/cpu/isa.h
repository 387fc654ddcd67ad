// Which of the CPU backend's instruction sets this processor and operating system run.
//
//   CpuIsa isa = best_cpu_isa();                    // what CpuIsa::kAuto stands for
//   if (!cpu_supports(CpuIsa::kAmx)) skip("...");
//
// The binary itself is built for plain x86-64; anything above that is chosen at run time.
#pragma once

#include <string_view>

#include "kernels/backend.h"

namespace farspan {

// The best instruction set that can be used here; never kAuto, at worst kPortable.
CpuIsa best_cpu_isa();

// True when code of `isa` may be executed by this process. For kAmx this also asks the kernel for
// permission to use the tile registers (arch_prctl ARCH_REQ_XCOMP_PERM, once granted it holds for
// the process). kAuto and kPortable are always supported.
bool cpu_supports(CpuIsa isa);

// "auto", "portable", "avx2", "avx512", "avx512_bf16", "amx".
std::string_view name_of(CpuIsa isa);

}  // namespace farspan
