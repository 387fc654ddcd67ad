#include "kernels/cuda/cuda_kernels.h"

#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/attention/backward.h"
#include "kernels/cuda/attention/delta.h"
#include "kernels/cuda/cross_entropy.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_error.h"
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/embedding.h"
#include "kernels/cuda/exact.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/optimizer.h"

namespace farspan::cuda {
namespace {

// Bytes of shared memory that a block may have, once it asks.
std::size_t most_shared_memory(int device) {
  int bytes = 0;
  FARSPAN_CUDA(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return static_cast<std::size_t>(bytes);
}

}  // namespace

CudaKernels::CudaKernels(Device& device, AttentionKernel attention_kernel)
    : matmul_(device),
      schedules_(device),
      cudnn_(device, attention_kernel,
             attention_kernel == AttentionKernel::kOwn ? CudnnFacts{} : cudnn_facts(),
             make_sdpa_engine),
      workspace_(device),
      most_shared_(most_shared_memory(device.id().index)) {}

void CudaKernels::release_recordings() {
  schedules_.release_captured();
  cudnn_.release_captured();
}

void CudaKernels::copy(const CopyArgs& args, Stream& stream) { cuda::copy(args, native(stream)); }
void CudaKernels::fill(const FillArgs& args, Stream& stream) { cuda::fill(args, native(stream)); }
void CudaKernels::add(const AddArgs& args, Stream& stream) { cuda::add(args, native(stream)); }
void CudaKernels::matmul(const MatmulArgs& args, Stream& stream) { matmul_.run(args, stream); }
void CudaKernels::rmsnorm_forward(const RmsNormForwardArgs& args, Stream& stream) {
  cuda::rmsnorm_forward(args, stream);
}
void CudaKernels::rmsnorm_backward(const RmsNormBackwardArgs& args, Stream& stream) {
  cuda::rmsnorm_backward(args, workspace_, stream);
}
void CudaKernels::rope_table(const RopeTableArgs& args, Stream& stream) {
  cuda::rope_table(args, native(stream));
}
void CudaKernels::rope_apply(const RopeApplyArgs& args, Stream& stream) {
  cuda::rope_apply(args, native(stream));
}
void CudaKernels::swiglu_forward(const SwiGluForwardArgs& args, Stream& stream) {
  cuda::swiglu_forward(args, native(stream));
}
void CudaKernels::swiglu_backward(const SwiGluBackwardArgs& args, Stream& stream) {
  cuda::swiglu_backward(args, native(stream));
}
void CudaKernels::embedding_forward(const EmbeddingForwardArgs& args, Stream& stream) {
  cuda::embedding_forward(args, stream);
}
void CudaKernels::embedding_backward(const EmbeddingBackwardArgs& args, Stream& stream) {
  cuda::embedding_backward(args, workspace_, stream);
}
void CudaKernels::cross_entropy(const CrossEntropyArgs& args, Stream& stream) {
  cuda::cross_entropy(args, most_shared_, workspace_, stream);
}
void CudaKernels::squared_norm(const SquaredNormArgs& args, Stream& stream) {
  cuda::squared_norm(args, workspace_, stream);
}
void CudaKernels::clip(const ClipArgs& args, Stream& stream) { cuda::clip(args, stream); }
void CudaKernels::adamw(const AdamWArgs& args, Stream& stream) { cuda::adamw(args, stream); }
void CudaKernels::attention_forward(const AttentionForwardArgs& args, Stream& stream) {
  const auto own = [&](const AttentionForwardArgs& call) {
    cuda::attention_forward(call, schedules_, stream);
  };
  if (!cudnn_.forward(args, stream, own)) own(args);
}
void CudaKernels::attention_delta(const AttentionDeltaArgs& args, Stream& stream) {
  cuda::attention_delta(args, native(stream));
}
void CudaKernels::attention_backward(const AttentionBackwardArgs& args, Stream& stream) {
  if (!cudnn_.backward(args, stream)) cuda::attention_backward(args, schedules_, stream);
}
void CudaKernels::copy_2d(const Copy2dArgs& args, Stream& stream) {
  cuda::copy_2d(args, native(stream));
}
void CudaKernels::exact_add(const ExactAddArgs& args, Stream& stream) {
  cuda::exact_add(args, native(stream));
}
void CudaKernels::exact_matmul(const ExactMatmulArgs& args, Stream& stream) {
  cuda::exact_matmul(args, matmul_, workspace_, stream);
}
void CudaKernels::exact_read(const ExactReadArgs& args, Stream& stream) {
  cuda::exact_read(args, native(stream));
}

}  // namespace farspan::cuda
