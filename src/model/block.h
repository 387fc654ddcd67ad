// One transformer layer of the Llama family (Touvron et al. 2023), forward and backward:
//
//   middle = x + O(attention(rope(Q(norm1 x)), rope(K(norm1 x)), V(norm1 x)))
//   out    = middle + Down(silu(Gate(norm2 middle)) * Up(norm2 middle))
//
// Everything but attention runs over tiles of tokens (model/token_tiles.h): what is not kept of the
// norms and the MLP exists for one tile at a time.
//
// Legend: T local tokens   C hidden   F MLP width   Hq, Hkv heads   D head dim
#pragma once

#include <cstdint>
#include <string>

#include "config/run_config.pb.h"
#include "model/linear.h"
#include "model/recompute.h"
#include "model/token_tiles.h"
#include "parallel/attention.h"

namespace farspan {

// Position tables of the micro-batch's tokens, as a layer reads them.
struct RopeTables {
  Tensor cos, sin;  // (T, D / 2) f32; undefined: nothing is rotated
  BiasTables bias;
};

class Block {
 public:
  // A norm's output and 1/rms.
  struct Normed {
    Tensor y;     // (n, C)
    Tensor rstd;  // (n) f32
  };
  struct Mlp {
    Normed norm;
    Tensor gate, up, product;  // (n, F)
  };
  // What backward reads, for all T tokens. Undefined tensors are those that the policy recomputes.
  struct Saved {
    Tensor x;  // (T, C) the layer's input, always kept
    Normed norm;
    Tensor q, k, v;    // rotated, as the attention's strategy spreads them: (T', H', D)
    Tensor attention;  // (T, Hq, D)
    Tensor lse;        // (Hq', T') f32
    Tensor middle;     // (T, C)
    Mlp mlp;
  };

  // `pattern`: which of ctx.plans this layer's attention follows.
  Block(const config::Model& model, int layer, int pattern, ParameterStore& parameters,
        const Attention& attention);

  // From the next pass on: another of ctx.plans, and another strategy.
  void follow(int pattern, const Attention& attention) {
    pattern_ = pattern;
    attention_ = &attention;
  }

  // x and out (T, C) compute. What is kept comes from ctx.saved or, where the policy offloads it,
  // from ctx.stash; the rest from ctx.scratch.
  Saved forward(Tensor x, Tensor out, const RopeTables& rope, const RecomputePolicy& policy,
                const StepContext& ctx) const;
  // grad (T, C) compute: in, the gradient of out; on return, that of x. Adds to parameter
  // gradients. What the stash holds of this layer has arrived. Overwrites kept gate.
  void backward(const Saved& saved, Tensor grad, const RopeTables& rope,
                const StepContext& ctx) const;

 private:
  // Computes what is still undefined of `s`.
  void compute_qkv(Saved& s, const RopeTables& rope, const RecomputePolicy& policy,
                   const StepContext& ctx) const;
  void compute_attention(Saved& s, const RopeTables& rope, const RecomputePolicy& policy,
                         const StepContext& ctx) const;
  // Returns whether middle was undefined: it then holds the attention's branch alone, and
  // compute_mlp adds x.
  bool compute_branch(Saved& s, const RecomputePolicy& policy, const StepContext& ctx) const;
  void forward_mlp(Saved& s, Tensor out, const RecomputePolicy& policy,
                   const StepContext& ctx) const;
  void backward_mlp(const Saved& s, bool middle_lacks_x, Tensor grad, const StepContext& ctx) const;
  void backward_attention(const Saved& s, Tensor grad, const RopeTables& rope,
                          const StepContext& ctx) const;
  // From the gradients of rotated q, k, v (f32) on; rotates them back in place if x is f32.
  void backward_qkv(const Saved& s, const AttentionGradients& sums, Tensor grad,
                    const RopeTables& rope, const StepContext& ctx) const;

  // Room for `rows` tokens of what the policy keeps, or, given what is kept, of what it lacks.
  Normed take_norm(Arena& arena, DType dtype, std::int64_t rows) const;
  Mlp take_tile(const Mlp& kept, DType dtype, std::int64_t rows, const StepContext& ctx) const;
  // Computes those tensors of a tile that `done` lacks. x and middle: (n, C), the tile's; x is
  // added to middle, unless it is undefined.
  void compute_mlp(Tensor x, Tensor middle, const Mlp& tile, const Mlp& done,
                   const StepContext& ctx) const;
  void rotate(Tensor x, const RopeTables& rope, const TokenTile& tile, bool inverse,
              const StepContext& ctx) const;
  void norm_forward(const Parameter& gain, Tensor x, const Normed& out,
                    const StepContext& ctx) const;
  // grad += gradient of x, from the gradient dy_sum (f32) of the norm's output.
  void norm_backward(Parameter& gain, Tensor x, Tensor rstd, Tensor dy_sum, Tensor grad,
                     const StepContext& ctx) const;

  const Attention& attention(const StepContext& ctx) const {
    return ctx.attention != nullptr ? *ctx.attention : *attention_;
  }

  const Attention* attention_;
  int pattern_;  // of ctx.plans
  int layer_;
  std::int64_t hidden_, num_heads_, num_kv_heads_, head_dim_, ffn_;
  float eps_;
  Parameter *gain1_, *gain2_;
  Linear q_, k_, v_, o_, gate_, up_, down_;
};

}  // namespace farspan
