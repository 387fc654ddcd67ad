// The one interface of compute. Backends: cpu (kernels/cpu), cuda (kernels/cuda), dry (kernels/dry:
// checks shapes and counts, computes nothing). args.h says what each operation does.
//
// Outputs are explicit and nothing is allocated for the caller. Small internal workspace comes from
// memory that the backend holds from its construction or its first call of that shape.
// Every backend is wrapped by `checked` (kernels/checked.h), which validates shapes and dtypes.
#pragma once

#include "core/device.h"
#include "kernels/args.h"

namespace farspan {

class Kernels {
 public:
  virtual ~Kernels() = default;

  virtual void copy(const CopyArgs&, Stream&) = 0;
  virtual void fill(const FillArgs&, Stream&) = 0;
  virtual void add(const AddArgs&, Stream&) = 0;
  virtual void matmul(const MatmulArgs&, Stream&) = 0;
  virtual void rmsnorm_forward(const RmsNormForwardArgs&, Stream&) = 0;
  virtual void rmsnorm_backward(const RmsNormBackwardArgs&, Stream&) = 0;
  virtual void rope_table(const RopeTableArgs&, Stream&) = 0;
  virtual void rope_apply(const RopeApplyArgs&, Stream&) = 0;
  virtual void swiglu_forward(const SwiGluForwardArgs&, Stream&) = 0;
  virtual void swiglu_backward(const SwiGluBackwardArgs&, Stream&) = 0;
  virtual void embedding_forward(const EmbeddingForwardArgs&, Stream&) = 0;
  virtual void embedding_backward(const EmbeddingBackwardArgs&, Stream&) = 0;
  virtual void cross_entropy(const CrossEntropyArgs&, Stream&) = 0;
  virtual void squared_norm(const SquaredNormArgs&, Stream&) = 0;
  virtual void clip(const ClipArgs&, Stream&) = 0;
  virtual void adamw(const AdamWArgs&, Stream&) = 0;
  virtual void attention_forward(const AttentionForwardArgs&, Stream&) = 0;
  virtual void attention_delta(const AttentionDeltaArgs&, Stream&) = 0;
  virtual void attention_backward(const AttentionBackwardArgs&, Stream&) = 0;
  virtual void copy_2d(const Copy2dArgs&, Stream&) = 0;
  virtual void exact_add(const ExactAddArgs&, Stream&) = 0;
  virtual void exact_matmul(const ExactMatmulArgs&, Stream&) = 0;
  virtual void exact_read(const ExactReadArgs&, Stream&) = 0;

  // No Graph recorded so far (core/device.h) runs again: what was kept for them may go.
  virtual void release_recordings() {}
};

}  // namespace farspan
