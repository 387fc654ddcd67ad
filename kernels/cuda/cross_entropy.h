// Softmax cross-entropy on CUDA, exactly as kernels/args.h says. A row's bits depend on that row
// alone; loss and count are added in an order that the number of rows alone decides. A label beyond
// the vocabulary cannot be refused here: it makes the loss NaN.
#pragma once

#include "kernels/args.h"
#include "kernels/cuda/workspace.h"

namespace farspan::cuda {

// most_shared: bytes of shared memory that a block of this device may have.
void cross_entropy(const CrossEntropyArgs& args, std::size_t most_shared, Workspace& space,
                   Stream& stream);

}  // namespace farspan::cuda
