// Memory-bound operations on CUDA, exactly as kernels/args.h says. Asynchronous on `stream`.
#pragma once

#include <cuda_runtime.h>

#include "kernels/args.h"

namespace farspan::cuda {

void copy(const CopyArgs& args, cudaStream_t stream);
void copy_2d(const Copy2dArgs& args, cudaStream_t stream);
void fill(const FillArgs& args, cudaStream_t stream);
void add(const AddArgs& args, cudaStream_t stream);
void swiglu_forward(const SwiGluForwardArgs& args, cudaStream_t stream);
void swiglu_backward(const SwiGluBackwardArgs& args, cudaStream_t stream);
void rope_table(const RopeTableArgs& args, cudaStream_t stream);
void rope_apply(const RopeApplyArgs& args, cudaStream_t stream);

}  // namespace farspan::cuda
