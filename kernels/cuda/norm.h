// RMSNorm on CUDA, exactly as kernels/args.h says. A row's bits depend on that row alone.
#pragma once

#include "kernels/args.h"
#include "kernels/cuda/workspace.h"

namespace farspan::cuda {

void rmsnorm_forward(const RmsNormForwardArgs& args, Stream& stream);
// dweight: rows are cut into groups by their number and C alone; each group's sum is formed row by
// row, and the groups are added in order.
void rmsnorm_backward(const RmsNormBackwardArgs& args, Workspace& space, Stream& stream);

}  // namespace farspan::cuda
