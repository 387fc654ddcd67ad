#include "core/error.h"
#include "kernels/cuda/attention/cudnn_engine.h"

namespace farspan::cuda {

CudnnFacts cudnn_facts() {
  return {.absent = "this build has no cuDNN (scripts/setup.sh fetches its frontend headers)"};
}

std::unique_ptr<SdpaEngine> make_sdpa_engine() {
  FARSPAN_CHECK(false, "cuDNN was asked for in a build without it");
  return nullptr;
}

}  // namespace farspan::cuda
