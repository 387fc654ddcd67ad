#include "train/device_overhead.h"

#include <algorithm>

namespace farspan {

std::vector<MemoryItem> device_overhead(const config::RunConfig& config) {
  if (config.device() != "cuda") return {};
  std::vector<MemoryItem> items{{"CUDA context", kCudaContextBytes}};
  // Communicators of more than one rank: the world's, and those of the mesh.
  const config::Parallel& parallel = config.parallel();
  const std::int64_t ulysses = std::max<std::int64_t>(parallel.ulysses(), 1);
  const std::int64_t sizes[] = {parallel.data() * parallel.context(), parallel.context() / ulysses,
                                ulysses};
  const auto num = static_cast<std::size_t>(
      std::count_if(std::begin(sizes), std::end(sizes), [](std::int64_t n) { return n > 1; }));
  if (num > 0) items.push_back({"NCCL", num * kNcclBytesPerCommunicator});
  return items;
}

}  // namespace farspan
