// Ulysses attention (Jacobs et al. 2023) and its hybrid with the ring (Fang and Zhao 2024): the U
// ranks of one place of the ring exchange tokens for heads, each then runs the ring (of one place:
// plain Ulysses) over all tokens of its place and its share of the heads, and the results go back.
//
//   spread     Q, K, V in one exchange: rank u gets query heads [u Hq/U, (u+1) Hq/U) of all tokens
//              of its place, and the distinct KV heads behind them (ulysses_heads)
//   forward    ring over the merged rows; O's heads go back; the log-sum-exps stay
//   backward   delta = rowsum(dO O) before the exchange, so that O need not travel: dO and delta in
//              one exchange; ring; dQ, dK, dV back in one exchange, in the compute dtype. Where a
//              KV head has copies on several ranks, their dK, dV travel and are summed in f32, in
//              ascending u.
//
// Tokens of a place are cut by ulysses_share (mesh.h): uneven and empty shares are fine. KV heads
// are never expanded on the way; local copies are made only where the kernels need them. Every part
// takes the same way, this rank's own too, so that no result depends on which rank had a token.
#pragma once

#include "parallel/attention.h"

namespace farspan {

class UlyssesAttention final : public Attention {
 public:
  AttentionInputs spread(const AttentionInputs& in, Arena& arena,
                         const StepContext& ctx) const override;
  bool spreads() const override { return true; }
  void forward(const AttentionInputs& in, Tensor out, Tensor lse, const BiasTables& bias,
               const StepContext& ctx) const override;
  void backward(const AttentionInputs& in, Tensor out, Tensor lse, Tensor dout,
                const BiasTables& bias, const AttentionGradients& grads,
                const StepContext& ctx) const override;
};

}  // namespace farspan
