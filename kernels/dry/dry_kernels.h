// Kernels that count what they are asked for and touch no memory: FLOPs, bytes, calls. Behind
// `checked` they also check every shape. The planner's estimate is a training step run on these.
//
//   DryKernels kernels;
//   kernels.matmul({...}, stream);
//   kernels.work().matmul_flops;   // 2 M N K
//
// Bytes are the least that a fused kernel moves: each input once, each output once, twice where it
// is also read (accumulation, in place). Attention counts each tensor once per call.
#pragma once

#include "kernels/backend.h"
#include "kernels/dry/cuda_workspaces.h"
#include "kernels/kernels.h"

namespace farspan::dry {

class DryKernels final : public Kernels {
 public:
  // Of the options: dry_target, the kind of device whose workspaces are counted (only CUDA's
  // operations take any), and who computes attention there.
  explicit DryKernels(const BackendOptions& options = {})
      : cuda_(options.dry_target == DeviceKind::kCuda), workspaces_(options.attention_kernel) {}

  std::vector<MemoryItem> workspaces() const { return workspaces_.items(); }
  const WorkCounters& work() const { return work_; }
  void reset_work() { work_ = {}; }

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

 private:
  template <typename Args>
  void see(const Args& args) {
    if (cuda_) workspaces_.see(args);
  }

  bool cuda_;
  CudaWorkspaces workspaces_;
  WorkCounters work_;
};

}  // namespace farspan::dry
