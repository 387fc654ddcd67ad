// Final norm, output projection and softmax cross-entropy, in chunks of tokens: the full logits
// never exist. The loss computes its gradient in the forward pass (as Liger and Apple's CCE do), so
// that each chunk's logits are formed once.
//
// Legend: T local tokens   C hidden   V vocabulary   N rows of one chunk
#pragma once

#include "model/linear.h"

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

  // Rows of a chunk: about 32 MiB of f32 logits, at least 64 and at most 4096 rows.
  std::int64_t chunk_rows() const;

 private:
  void norm(Tensor x, Tensor y, Tensor rstd, const StepContext& ctx) const;
  // Chunks of `tokens` rows: the most rows that one has, and where the one that begins at `row`
  // ends. In invariant mode a chunk is a block of tokens.
  std::int64_t largest_chunk(std::int64_t tokens, const StepContext& ctx) const;
  std::int64_t chunk_end(std::int64_t row, std::int64_t tokens, const StepContext& ctx) const;

  Parameter* gain_;
  Parameter* head_;
  float eps_;
};

}  // namespace farspan
