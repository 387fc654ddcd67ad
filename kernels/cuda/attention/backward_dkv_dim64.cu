#include "kernels/cuda/attention/backward_block.cuh"

namespace farspan::cuda {

template void launch_backward<64, BackwardPart::kKeys>(const BackwardCall&, const DeviceSchedule&,
                                                       cudaStream_t);

}  // namespace farspan::cuda
