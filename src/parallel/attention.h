// Attention over sequences that are spread across ranks. One class per strategy, all over the same
// inner kernel and driven by an AttentionPlan; the model does not know which one it runs.
//
//   AttentionInputs spread = attention.spread({q, k, v}, ctx.saved, ctx);  // kept for backward
//   Tensor lse = ctx.saved.take(DType::kF32, attention.lse_shape(spread), "lse");
//   attention.forward(spread, out, lse, bias, ctx);
//   attention.backward(spread, out, lse, dout, bias, grads, ctx);
//
// Legend: T local tokens   Hq query heads   Hkv key/value heads   D head dim
//         T', Hq', Hkv'    the same of the part of the attention that this rank computes
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "parallel/step_context.h"

namespace farspan {

struct AttentionInputs {
  Tensor q;     // (T, Hq, D) compute
  Tensor k, v;  // (T, Hkv, D) compute
};

// Gradients in f32, overwritten.
struct AttentionGradients {
  Tensor dq;      // (T, Hq, D)
  Tensor dk, dv;  // (T, Hkv, D)
};

// Per-head and per-dimension tables of the model, on the device (see PositionBias); undefined
// tensors: none. For all Hq heads: a strategy takes its share.
struct BiasTables {
  Tensor slopes;  // (Hq) f32
  Tensor decay;   // (D / 2) f32
};

class Attention {
 public:
  virtual ~Attention() = default;
  // What the kernels of this strategy read: `in` itself (ring, all-gather), or its heads exchanged
  // for tokens (Ulysses, hybrid), taken from `arena`. forward and backward take the result.
  virtual AttentionInputs spread(const AttentionInputs& in, Arena& arena,
                                 const StepContext& ctx) const = 0;
  // Whether spread() makes new tensors: then its argument is not needed any more.
  virtual bool spreads() const { return false; }
  // Whether q and k come as they were projected, to be rotated here: each by more than one
  // position.
  virtual bool rotates() const { return false; }
  // (Hq', T'): the log-sum-exps are kept where they were computed.
  virtual Shape lse_shape(const AttentionInputs& spread) const {
    return {spread.q.shape[1], spread.q.shape[0]};
  }
  // out (T, Hq, D) compute; lse of lse_shape, f32, natural logarithm. Scores are scaled by
  // 1 / sqrt(D).
  virtual void forward(const AttentionInputs& spread, Tensor out, Tensor lse,
                       const BiasTables& bias, const StepContext& ctx) const = 0;
  // out and dout (T, Hq, D); grads of the unspread q, k, v.
  virtual void backward(const AttentionInputs& spread, Tensor out, Tensor lse, Tensor dout,
                        const BiasTables& bias, const AttentionGradients& grads,
                        const StepContext& ctx) const = 0;
};

// "ring", "allgather", "ulysses" or "hybrid". `invariant`: all-gather in a fixed order, bitwise the
// same for any number of ranks; "allgather" only. Throws Error(kUsage) for a strategy that does not
// exist.
std::unique_ptr<Attention> make_attention(std::string_view strategy, bool invariant = false);

// Payload bytes that one rank sends per layer, exactly as the communicators count them.
struct AttentionBytes {
  std::int64_t forward = 0;
  std::int64_t backward = 0;
  std::int64_t spread = 0;  // the part of `forward` that a recompute of Q, K, V repeats
};

struct HeadShape {
  std::int64_t num_heads = 1, num_kv_heads = 1, head_dim = 1;
  DType compute = DType::kBF16;
};

// `plan` of this rank's place in the ring; `place` of this rank. Ring, all-gather (plan.gather
// filled), Ulysses, hybrid.
AttentionBytes attention_bytes(std::string_view strategy, const AttentionPlan& plan,
                               const ContextPlace& place, const HeadShape& heads, bool invariant);

// The query heads [q_begin, q_end) that Ulysses rank u of U computes, and the model's KV head
// behind each of its local KV heads, ascending: the model's own while groups stay whole, otherwise
// one for every gcd(Hq / U, Hq / Hkv) query heads, so that a head may have several copies on one
// rank and (U > Hkv) on several. Distinct heads are consecutive. CHECKs that U divides num_heads.
struct HeadShare {
  std::int64_t q_begin = 0, q_end = 0;
  std::vector<std::int32_t> kv_heads;
  bool shared = false;  // groups are not whole: gradients of KV heads are summed over ranks
  std::int64_t num_distinct() const { return kv_heads.back() - kv_heads.front() + 1; }
};
HeadShare ulysses_heads(std::int64_t num_heads, std::int64_t num_kv_heads, int u, int size);

}  // namespace farspan
