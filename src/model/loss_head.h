// Final norm, output projection and softmax cross-entropy, in chunks of tokens: the full logits
// never exist. The loss computes its gradient in the forward pass (as Liger and Apple's CCE do), so
// that each chunk's logits are formed once.
//
// Legend: T local tokens   C hidden   V vocabulary   N rows of one chunk
#pragma once

#include "model/linear.h"
#include "model/token_tiles.h"

namespace farspan {

// Device sums over tokens, accumulated over micro-batches.
struct LossSums {
  Tensor loss_sum;     // (1) f64, nats
  Tensor valid_count;  // (1) f64, scored tokens
};

class LossHead {
 public:
  // `head`: (V, C), the embedding itself when tied.
  LossHead(Parameter& gain, Parameter& head, float eps);

  // Adds the loss of x (T, C) against labels (T) i32 to `sums`; overwrites grad (T, C) compute with
  // the gradient of the summed loss with respect to x, and adds to the gradients of gain and head.
  void forward_backward(Tensor x, Tensor labels, Tensor grad, const LossSums& sums,
                        const StepContext& ctx) const;
  // Loss only. nll (T) f32 is written when defined (NaN where not scored).
  void forward(Tensor x, Tensor labels, const LossSums& sums, Tensor nll,
               const StepContext& ctx) const;
  // logits (T, V) f32 of few rows.
  void logits(Tensor x, Tensor logits, const StepContext& ctx) const;

  // Rows of a chunk on this kind of device. CPU: about 32 MiB of f32 logits, at least 64 rows.
  // CUDA: at most 768 MiB of f32 logits and bf16 gradients, since a GPU's matmul wants 1k rows and
  // more.
  std::int64_t chunk_rows(DeviceKind device) const;

 private:
  void norm(Tensor x, Tensor y, Tensor rstd, const StepContext& ctx) const;
  TokenTiles chunks(std::int64_t tokens, const StepContext& ctx) const;

  Parameter* gain_;
  Parameter* head_;
  float eps_;
};

}  // namespace farspan
