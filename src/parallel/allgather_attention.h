// All-gather attention: every rank is sent exactly the keys and values that its queries see
// (AttentionPlan::gather), each row once and straight from its owner, and holds them all at once.
// Against the ring: fewer bytes where few of the ranks in between need a row, and no hops to wait
// for; more memory.
//
// Forward: the rows travel while this rank computes its own part; then one call over what came.
// Backward: the rows travel again; partial dK, dV of others' rows are summed here in f32 and sent
// back to their owners, who add them to their own part in ascending rank order (a reduce-scatter of
// uneven blocks). A third of the own part is computed while keys and values come in, the rest while
// gradients go home. What stays exposed is traced as "attention.exposed". A rerun is bitwise equal.
#pragma once

#include "parallel/attention.h"

namespace farspan {

class AllgatherAttention final : public Attention {
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

}  // namespace farspan
