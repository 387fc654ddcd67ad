#include "kernels/cuda/trace_sink.h"

#include <nvtx3/nvToolsExt.h>

#include <string>

#include "kernels/cuda/cuda_error.h"

namespace farspan::cuda {
namespace {

// The sections in which the compute queue waits for other ranks.
bool is_exposed(std::string_view name) {
  return name.ends_with(".exposed") || name == "gradients.all_reduce";
}

}  // namespace

CudaTraceSink::CudaTraceSink(Stream& stream, bool all) : stream_(stream), all_(all) {}

CudaTraceSink::~CudaTraceSink() {
  for (std::vector<Mark>* marks : {&open_, &ended_})
    for (const Mark& mark : *marks) {
      if (mark.begin != nullptr) free_.push_back(mark.begin);
      if (mark.end != nullptr) free_.push_back(mark.end);
    }
  for (cudaEvent_t event : free_)
    if (cudaEventDestroy(event) != cudaSuccess) (void)cudaGetLastError();
}

cudaEvent_t CudaTraceSink::take_event() {
  cudaEvent_t event = nullptr;
  if (free_.empty()) {
    FARSPAN_CUDA(cudaEventCreate(&event));
  } else {
    event = free_.back();
    free_.pop_back();
  }
  return event;
}

void CudaTraceSink::begin(std::string_view name, int index) {
  nvtxRangePushA(section_label(name, index).c_str());
  Mark mark{.begin = nullptr, .end = nullptr, .name = name};
  // An event inside a recorded graph would carry no time.
  if ((all_ || is_exposed(name)) && !stream_.is_recording()) {
    mark.begin = take_event();
    mark.end = take_event();
    FARSPAN_CUDA(cudaEventRecord(mark.begin, native(stream_)));
  }
  open_.push_back(mark);
}

// Called by destructors, also while an error unwinds: it reports nothing itself. What is wrong with
// the queue, the next operation finds.
void CudaTraceSink::end() {
  nvtxRangePop();
  const Mark mark = open_.back();
  open_.pop_back();
  if (mark.begin == nullptr) return;
  if (cudaEventRecord(mark.end, native(stream_)) == cudaSuccess)
    ended_.push_back(mark);
  else
    free_.insert(free_.end(), {mark.begin, mark.end});
}

void CudaTraceSink::collect(const Take& take) {
  std::size_t done = 0;
  for (; done < ended_.size(); ++done) {
    const Mark& mark = ended_[done];
    const cudaError_t status = cudaEventQuery(mark.end);
    if (status == cudaErrorNotReady) {
      (void)cudaGetLastError();
      break;  // and all that follow it in the queue
    }
    check(status, "cudaEventQuery", __FILE__, __LINE__);
    float milliseconds = 0;
    FARSPAN_CUDA(cudaEventElapsedTime(&milliseconds, mark.begin, mark.end));
    take(mark.name, static_cast<double>(milliseconds) * 1e-3);
    free_.insert(free_.end(), {mark.begin, mark.end});
  }
  ended_.erase(ended_.begin(), ended_.begin() + static_cast<std::ptrdiff_t>(done));
}

}  // namespace farspan::cuda
