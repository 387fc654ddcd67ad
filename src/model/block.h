// One transformer layer of the Llama family (Touvron et al. 2023), forward and backward:
//
//   middle = x + O(attention(rope(Q(norm1 x)), rope(K(norm1 x)), V(norm1 x)))
//   out    = middle + Down(silu(Gate(norm2 middle)) * Up(norm2 middle))
//
// Legend: T local tokens   C hidden   F MLP width   Hq, Hkv heads   D head dim
#pragma once

#include <cstdint>
#include <string>

#include "config/run_config.pb.h"
#include "model/linear.h"
#include "model/recompute.h"
#include "parallel/attention.h"

namespace farspan {

// Position tables of the micro-batch's tokens, shared by all layers.
struct RopeTables {
  Tensor cos, sin;  // (T, D / 2) f32; undefined: nothing is rotated
  BiasTables bias;
};

class Block {
 public:
  // What backward reads. Undefined tensors are those that the policy recomputes.
  struct Saved {
    Tensor x;             // (T, C) the layer's input, always kept
    Tensor norm1, norm2;  // (T, C)
    Tensor rstd1, rstd2;  // (T) f32
    Tensor q, k, v;       // rotated, as the attention's strategy spreads them: (T', H', D)
    Tensor attention;     // (T, Hq, D)
    Tensor lse;           // (Hq', T') f32
    Tensor middle;        // (T, C)
    Tensor gate, up;      // (T, F)
    Tensor product;       // (T, F)
  };

  // `pattern`: which of ctx.plans this layer's attention follows.
  Block(const config::Model& model, int layer, int pattern, ParameterStore& parameters,
        const Attention& attention);

  // x and out (T, C) compute. Kept tensors come from ctx.saved, the others from ctx.scratch.
  Saved forward(Tensor x, Tensor out, const RopeTables& rope, const RecomputePolicy& policy,
                const StepContext& ctx) const;
  // grad (T, C) compute: in, the gradient of out; on return, that of x. Adds to parameter
  // gradients.
  void backward(const Saved& saved, Tensor grad, const RopeTables& rope,
                const StepContext& ctx) const;

 private:
  // Computes, in order, whatever is still undefined of `s`, up to what backward needs.
  void compute_attention_part(Saved& s, const RopeTables& rope, const StepContext& ctx,
                              const RecomputePolicy& keep) const;
  void compute_mlp_part(Saved& s, const StepContext& ctx, const RecomputePolicy& keep) const;
  void rotate(Tensor x, const RopeTables& rope, bool inverse, const StepContext& ctx) const;
  void backward_mlp(const Saved& s, Tensor grad, const StepContext& ctx) const;
  void backward_attention(const Saved& s, Tensor grad, const RopeTables& rope,
                          const StepContext& ctx) const;
  void norm_forward(const Parameter& gain, Tensor x, Tensor y, Tensor rstd,
                    const StepContext& ctx) const;
  // grad += gradient of x, from the gradient dy_sum (f32) of the norm's output.
  void norm_backward(Parameter& gain, Tensor x, Tensor rstd, Tensor dy_sum, Tensor grad,
                     const StepContext& ctx) const;

  const Attention* attention_;
  int pattern_;  // of ctx.plans
  std::int64_t num_heads_, num_kv_heads_, head_dim_, ffn_;
  float eps_;
  Parameter *gain1_, *gain2_;
  Linear q_, k_, v_, o_, gate_, up_, down_;
};

}  // namespace farspan
