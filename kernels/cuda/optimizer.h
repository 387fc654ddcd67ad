// Squared norm, the optimizer's gate and AdamW on CUDA, exactly as kernels/args.h says.
#pragma once

#include "kernels/args.h"
#include "kernels/cuda/workspace.h"

namespace farspan::cuda {

void squared_norm(const SquaredNormArgs& args, Workspace& space, Stream& stream);
void clip(const ClipArgs& args, Stream& stream);
void adamw(const AdamWArgs& args, Stream& stream);

}  // namespace farspan::cuda
