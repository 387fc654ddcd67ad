// What a GPU holds for a run beside Farspan's arenas and the workspaces of its operations, which
// dry backends predict (Backend::workspaces): CUDA's and NCCL's own.
#pragma once

#include <cstddef>
#include <vector>

#include "config/run_config.pb.h"
#include "kernels/backend.h"

namespace farspan {

// Figures of one release on one kind of GPU, to be calibrated on each: a run with --profile prints
// what the device holds beyond what Farspan took (docs/memory.md). Until then from NVIDIA's
// documentation and what others report for Hopper.
inline constexpr std::size_t kCudaContextBytes = std::size_t{560} << 20;  // context, modules
inline constexpr std::size_t kNcclBytesPerCommunicator = std::size_t{220} << 20;

// Items of a run with device: cuda; none on a CPU.
std::vector<MemoryItem> device_overhead(const config::RunConfig& config);

}  // namespace farspan
