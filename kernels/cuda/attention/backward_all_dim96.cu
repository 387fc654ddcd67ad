#include "kernels/cuda/attention/backward_block.cuh"

namespace farspan::cuda {

template void launch_backward<96, BackwardPart::kAll>(const BackwardCall&, const DeviceSchedule&,
                                                      cudaStream_t);

}  // namespace farspan::cuda
