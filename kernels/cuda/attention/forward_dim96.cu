#include "kernels/cuda/attention/forward_block.cuh"

namespace farspan::cuda {

template void launch_forward<96>(const ForwardCall&, const DeviceSchedule&, cudaStream_t);

}  // namespace farspan::cuda
