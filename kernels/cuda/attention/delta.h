// The delta of attention's backward pass on CUDA, as kernels/args.h says (AttentionDeltaArgs).
// Asynchronous on `stream`.
#pragma once

#include <cuda_runtime.h>

#include "kernels/args.h"

namespace farspan::cuda {

void attention_delta(const AttentionDeltaArgs& args, cudaStream_t stream);

}  // namespace farspan::cuda
