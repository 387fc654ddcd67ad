// Sums that do not depend on the order of their terms, exactly as kernels/args.h says.
#pragma once

#include <cuda_runtime.h>

#include "kernels/args.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/workspace.h"

namespace farspan::cuda {

void exact_add(const ExactAddArgs& args, cudaStream_t stream);
// Products of blocks go, a tile at a time, through 4 MiB of the workspace.
void exact_matmul(const ExactMatmulArgs& args, Matmul& matmul, Workspace& space, Stream& stream);
void exact_read(const ExactReadArgs& args, cudaStream_t stream);

}  // namespace farspan::cuda
