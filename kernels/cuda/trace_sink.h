// Sections of a trace on CUDA: ranges in the profiler's time line (NVTX), named like the modules,
// and the time between events on the compute queue, read at the step's end. Nothing waits for the
// device.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <string_view>
#include <vector>

#include "core/trace.h"
#include "kernels/cuda/cuda_device.h"

namespace farspan::cuda {

class CudaTraceSink final : public TraceSink {
 public:
  // Times every section on `stream`, or, unless `all`, only those in which ranks wait for one
  // another, which no clock of the host sees. `stream` must outlive this object.
  CudaTraceSink(Stream& stream, bool all);
  ~CudaTraceSink() override;

  void begin(std::string_view name, int index) override;
  void end() override;
  void collect(const Take& take) override;

 private:
  struct Mark {
    cudaEvent_t begin, end;
    std::string_view name;
  };
  cudaEvent_t take_event();

  Stream& stream_;
  const bool all_;
  std::vector<cudaEvent_t> free_;  // events are made once and used again
  std::vector<Mark> open_;         // begun; event null: not timed
  std::vector<Mark> ended_;        // since the last collect()
};

}  // namespace farspan::cuda
