// Ring attention (Liu, Zaharia, Abbeel 2023) over zigzag or any other layout.
//
// Forward: keys and values travel rank -> rank + 1; softmax state stays f32 from the first hop to
// the last (partials are never rounded). Backward: keys and values travel again; each rank's
// partial dK, dV for a block follow it one hop behind, and the last user of a row sends its sum
// straight to the owner, who adds its own part. Transfers run while the kernels compute; what is
// left exposed is traced as "attention.exposed". Hops, slices and additions have a fixed order: a
// rerun is bitwise equal.
#pragma once

#include "parallel/attention.h"

namespace farspan {

class RingAttention final : public Attention {
 public:
  AttentionInputs spread(const AttentionInputs& in, Arena&, const StepContext&) const override {
    return in;
  }
  void forward(const AttentionInputs& in, Tensor out, Tensor lse, const BiasTables& bias,
               const StepContext& ctx) const override;
  void backward(const AttentionInputs& in, Tensor out, Tensor lse, Tensor dout,
                const BiasTables& bias, const AttentionGradients& grads,
                const StepContext& ctx) const override;
};

// The ring itself, over the rows and heads that `in` holds and the plan of their place: also what
// Ulysses ranks run among themselves. Shapes as in Attention, with T' = in.q.shape[0]; delta (Hq',
// T') f32 is rowsum(dout * out). `out` (T', Hq', D) may be undefined: it speeds up kernels that
// read it (args.h).
void ring_forward(const AttentionInputs& in, Tensor out, Tensor lse, const BiasTables& bias,
                  const StepContext& ctx);
void ring_backward(const AttentionInputs& in, Tensor out, Tensor lse, Tensor delta, Tensor dout,
                   const BiasTables& bias, const AttentionGradients& grads, const StepContext& ctx);

}  // namespace farspan
