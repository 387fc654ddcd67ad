// Every operation of kernels/kernels.h on one NVIDIA GPU.
//
//   CudaKernels kernels(device);
//   kernels.add({.a = x, .b = y, .out = x}, *stream);   // enqueued: nothing waits for the device
//
// Memory beside the arguments: workspace, taken at the first call of a shape and kept (matmul.h,
// workspace.h); attention keeps schedules (attention/schedule_cache.h).
#pragma once

#include <string>
#include <vector>

#include "kernels/cuda/attention/cudnn_attention.h"
#include "kernels/cuda/attention/schedule_cache.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/workspace.h"
#include "kernels/kernels.h"

namespace farspan::cuda {

class CudaKernels final : public Kernels {
 public:
  // `device` must outlive this object.
  explicit CudaKernels(Device& device, AttentionKernel attention_kernel = AttentionKernel::kAuto);

  void copy(const CopyArgs&, Stream&) override;
  void fill(const FillArgs&, Stream&) override;
  void add(const AddArgs&, Stream&) override;
  void matmul(const MatmulArgs&, Stream&) override;
  void rmsnorm_forward(const RmsNormForwardArgs&, Stream&) override;
  void rmsnorm_backward(const RmsNormBackwardArgs&, Stream&) override;
  void rope_table(const RopeTableArgs&, Stream&) override;
  void rope_apply(const RopeApplyArgs&, Stream&) override;
  void swiglu_forward(const SwiGluForwardArgs&, Stream&) override;
  void swiglu_backward(const SwiGluBackwardArgs&, Stream&) override;
  void embedding_forward(const EmbeddingForwardArgs&, Stream&) override;
  void embedding_backward(const EmbeddingBackwardArgs&, Stream&) override;
  void cross_entropy(const CrossEntropyArgs&, Stream&) override;
  void squared_norm(const SquaredNormArgs&, Stream&) override;
  void clip(const ClipArgs&, Stream&) override;
  void adamw(const AdamWArgs&, Stream&) override;
  void attention_forward(const AttentionForwardArgs&, Stream&) override;
  void attention_delta(const AttentionDeltaArgs&, Stream&) override;
  void attention_backward(const AttentionBackwardArgs&, Stream&) override;
  void copy_2d(const Copy2dArgs&, Stream&) override;
  void exact_add(const ExactAddArgs&, Stream&) override;
  void exact_matmul(const ExactMatmulArgs&, Stream&) override;
  void exact_read(const ExactReadArgs&, Stream&) override;
  void release_recordings() override;

  // Who computes attention: "cuDNN 9.19.0 where it can".
  std::string attention_description() const { return cudnn_.description(); }
  // As Backend::take_notes.
  std::vector<std::string> take_notes() { return cudnn_.take_notes(); }

 private:
  Matmul matmul_;
  ScheduleCache schedules_;
  CudnnAttention cudnn_;
  Workspace workspace_;  // of one operation at a time on each queue
  std::size_t most_shared_;
};

}  // namespace farspan::cuda
