// The operations that exist on CUDA so far. The class is abstract as long as kernels/kernels.h has
// an operation that is not written here, so no backend can be made of it; the factory refuses with
// the list of what is missing, which the compiler draws up (operation_states).
//
// Writing an operation: override it here. Nothing else says that it exists.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels/cuda/attention/cudnn_attention.h"
#include "kernels/cuda/attention/schedule_cache.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/workspace.h"
#include "kernels/kernels.h"

namespace farspan::cuda {

class CudaKernels : public Kernels {
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

struct OperationState {
  std::string_view name;
  bool written;
};

// Every operation of Kernels, in its order, and whether CudaKernels has it.
std::vector<OperationState> operation_states();

}  // namespace farspan::cuda
