// The operations of kernels/kernels.h on the CPU, unchecked: `checked` wraps this class.
//
//   CpuKernels kernels({.isa = CpuIsa::kAvx512Bf16, .num_threads = 2});
//
// Memory-bound operations give the same bits for any number of threads. They differ between
// instruction sets (the width of a vector orders the sums of a row).
#pragma once

#include <memory>
#include <string>

#include "kernels/backend.h"
#include "kernels/kernels.h"

namespace farspan::cpu {

struct CpuConfig {
  CpuIsa isa = CpuIsa::kPortable;  // a concrete one, which this processor has
  int num_threads = 1;
};

class CpuKernels final : public Kernels {
 public:
  explicit CpuKernels(CpuConfig config);
  ~CpuKernels() override;

  // "avx512_bf16 attention, oneDNN 2.6.3 matmul (bf16 native), 2 threads"
  std::string description() const;

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
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace farspan::cpu
