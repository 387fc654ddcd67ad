// Sums that do not depend on the order of their terms, exactly as kernels/args.h says.
#pragma once

#include <cuda_runtime.h>

#include "kernels/args.h"

namespace farspan::cuda {

void exact_add(const ExactAddArgs& args, cudaStream_t stream);
void exact_read(const ExactReadArgs& args, cudaStream_t stream);

}  // namespace farspan::cuda
