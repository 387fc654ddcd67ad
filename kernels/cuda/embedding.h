// Embedding rows and their gradient on CUDA, exactly as kernels/args.h says. An id outside the
// table cannot be refused here: its row is NaN, which the loss tells, and its gradient goes
// nowhere.
#pragma once

#include "kernels/args.h"
#include "kernels/cuda/workspace.h"

namespace farspan::cuda {

void embedding_forward(const EmbeddingForwardArgs& args, Stream& stream);
// Each run of 256 tokens of one id is added in ascending t, then the runs in order.
void embedding_backward(const EmbeddingBackwardArgs& args, Workspace& space, Stream& stream);

}  // namespace farspan::cuda
