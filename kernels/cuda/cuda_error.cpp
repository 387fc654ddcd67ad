#include "kernels/cuda/cuda_error.h"

#include "core/error.h"

namespace farspan::cuda {
namespace {

bool environment_problem(cudaError_t status) {
  return status == cudaErrorNoDevice || status == cudaErrorInsufficientDriver ||
         status == cudaErrorInvalidDevice || status == cudaErrorSystemDriverMismatch ||
         status == cudaErrorDevicesUnavailable || status == cudaErrorStubLibrary ||
         status == cudaErrorCallRequiresNewerDriver || status == cudaErrorUnsupportedPtxVersion ||
         status == cudaErrorNoKernelImageForDevice;
}

}  // namespace

void check(cudaError_t status, const char* call, const char* file, int line) {
  if (status == cudaSuccess) return;
  // The runtime also keeps the failure for cudaGetLastError, where the next launch would find it.
  (void)cudaGetLastError();
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
                                   .fix = "check the GPU and its driver (nvidia-smi, farspan "
                                          "doctor), or set device: cpu"});
  throw Error(ExitCode::kInternal, {.what = what, .where = where});
}

void check(cublasStatus_t status, const char* call, const char* file, int line) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  (void)cudaGetLastError();
  const ExitCode code = status == CUBLAS_STATUS_ALLOC_FAILED    ? ExitCode::kExhausted
                        : status == CUBLAS_STATUS_ARCH_MISMATCH ? ExitCode::kUsage
                                                                : ExitCode::kInternal;
  throw Error(code, {.what = fmt::format("cuBLASLt: {}", cublasLtGetStatusString(status)),
                     .where = fmt::format("{}:{}: {}", file, line, call)});
}

}  // namespace farspan::cuda
