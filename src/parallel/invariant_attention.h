// All-gather attention whose bits do not depend on the number of ranks, the layout or the other
// sequences of the micro-batch (parallel.invariant; docs/adr/0006-invariant-mode.md).
//
//   Gather: each rank is sent the keys and values that its queries see, its own among them.
//   Forward: one kernel call for each block of queries, its keys in ascending order.
//   Backward: one call for each block of queries too. dq is complete after it; what it adds to dk
//   and dv goes into exact sums (ExactSum), which return to the owners of the rows and are added
//   there. Integers: in any order, the same sum.
//
// Blocks are ctx.row_blocks; the plan is made with PlanRequest::block.
#pragma once

#include "parallel/attention.h"

namespace farspan {

class InvariantAttention final : public Attention {
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
