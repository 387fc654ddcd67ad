#include "kernels/cuda/cuda_error.h"

#include "core/error.h"

namespace farspan::cuda {
namespace {

bool environment_problem(cudaError_t status) {
  return status == cudaErrorNoDevice || status == cudaErrorInsufficientDriver ||
         status == cudaErrorInvalidDevice || status == cudaErrorSystemDriverMismatch ||
         status == cudaErrorDevicesUnavailable;
}

}  // namespace

void check(cudaError_t status, const char* call, const char* file, int line) {
  if (status == cudaSuccess) return;
  const std::string where = fmt::format("{}:{}: {}", file, line, call);
  const std::string what = fmt::format("CUDA: {}", cudaGetErrorString(status));
  if (status == cudaErrorMemoryAllocation)
    throw Error(ExitCode::kExhausted,
                {.what = what,
                 .where = where,
                 .fix = "raise parallel.context, shorten train.sequence_length, or set "
                        "train.recompute: full+attention"});
  if (environment_problem(status))
    throw Error(ExitCode::kUsage, {.what = what,
                                   .where = where,
                                   .fix = "install a driver for this CUDA version and check "
                                          "nvidia-smi, or set device: cpu"});
  throw Error(ExitCode::kInternal, {.what = what, .where = where});
}

void check(cublasStatus_t status, const char* call, const char* file, int line) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw Error(status == CUBLAS_STATUS_ALLOC_FAILED ? ExitCode::kExhausted : ExitCode::kInternal,
              {.what = fmt::format("cuBLASLt: {}", cublasGetStatusString(status)),
               .where = fmt::format("{}:{}: {}", file, line, call)});
}

}  // namespace farspan::cuda
