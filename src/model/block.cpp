#include "model/block.h"

#include <cmath>

namespace farspan {

Block::Block(const config::Model& model, int layer, int pattern, ParameterStore& parameters,
             const Attention& attention)
    : attention_(&attention),
      pattern_(pattern),
      num_heads_(model.num_attention_heads()),
      num_kv_heads_(model.num_key_value_heads()),
      head_dim_(model.head_dim()),
      ffn_(model.intermediate_size()),
      eps_(static_cast<float>(model.rms_norm_eps())) {
  const std::string prefix = fmt::format("model.layers.{}.", layer);
  const std::int64_t hidden = model.hidden_size();
  const double deviation = model.initializer_range();
  // Projections that add to the residual stream start smaller (GPT-2, section 2.3).
  const double residual =
      deviation / std::sqrt(2.0 * static_cast<double>(model.num_hidden_layers()));
  const auto linear = [&](const char* name, std::int64_t out, std::int64_t in, double std) {
    return Linear(parameters.add(prefix + name, {out, in}, {.deviation = std}));
  };
  gain1_ = &parameters.add(prefix + "input_layernorm.weight", {hidden}, {.ones = true});
  q_ = linear("self_attn.q_proj.weight", num_heads_ * head_dim_, hidden, deviation);
  k_ = linear("self_attn.k_proj.weight", num_kv_heads_ * head_dim_, hidden, deviation);
  v_ = linear("self_attn.v_proj.weight", num_kv_heads_ * head_dim_, hidden, deviation);
  o_ = linear("self_attn.o_proj.weight", hidden, num_heads_ * head_dim_, residual);
  gain2_ = &parameters.add(prefix + "post_attention_layernorm.weight", {hidden}, {.ones = true});
  gate_ = linear("mlp.gate_proj.weight", ffn_, hidden, deviation);
  up_ = linear("mlp.up_proj.weight", ffn_, hidden, deviation);
  down_ = linear("mlp.down_proj.weight", hidden, ffn_, residual);
}

void Block::norm_forward(const Parameter& gain, Tensor x, Tensor y, Tensor rstd,
                         const StepContext& ctx) const {
  ctx.kernels().rmsnorm_forward({.x = x, .weight = gain.working, .y = y, .rstd = rstd, .eps = eps_},
                                ctx.stream());
}

void Block::norm_backward(Parameter& gain, Tensor x, Tensor rstd, Tensor dy_sum, Tensor grad,
                          const StepContext& ctx) const {
  auto scope = ctx.scratch.scope();
  Tensor dy = dy_sum;
  if (x.dtype != DType::kF32) {
    dy = ctx.scratch.take(x.dtype, x.shape, "block.norm_grad");
    ctx.kernels().copy({.src = dy_sum, .dst = dy}, ctx.stream());
  }
  ctx.kernels().rmsnorm_backward({.x = x,
                                  .weight = gain.working,
                                  .rstd = rstd,
                                  .dy = dy,
                                  .dx = grad,
                                  .dweight = gain.grad,
                                  .dx_mode = GradMode::kAccumulate},
                                 ctx.stream());
}

void Block::rotate(Tensor x, const RopeTables& rope, bool inverse, const StepContext& ctx) const {
  if (!rope.cos.defined()) return;
  ctx.kernels().rope_apply({.x = x, .cos = rope.cos, .sin = rope.sin, .inverse = inverse},
                           ctx.stream());
}

void Block::compute_attention_part(Saved& s, const RopeTables& rope, const StepContext& ctx,
                                   const RecomputePolicy& keep) const {
  const std::int64_t tokens = s.x.shape[0];
  const auto arena = [&](Activation a) -> Arena& {
    return keep.keeps(a) ? ctx.saved : ctx.scratch;
  };
  const auto take = [&](Activation a, Shape shape, std::string_view name) {
    return arena(a).take(s.x.dtype, shape, name);
  };
  if (!s.norm1.defined()) {
    s.norm1 = take(Activation::kNorm, s.x.shape, "block.norm1");
    s.rstd1 = arena(Activation::kNorm).take(DType::kF32, {tokens}, "block.rstd1");
    norm_forward(*gain1_, s.x, s.norm1, s.rstd1, ctx);
  }
  if (!s.q.defined()) {
    // What an exchange leaves behind is not kept.
    Arena& local = attention_->spreads() ? ctx.scratch : arena(Activation::kQkv);
    const AttentionInputs in{
        .q = local.take(s.x.dtype, {tokens, num_heads_, head_dim_}, "block.q"),
        .k = local.take(s.x.dtype, {tokens, num_kv_heads_, head_dim_}, "block.k"),
        .v = local.take(s.x.dtype, {tokens, num_kv_heads_, head_dim_}, "block.v")};
    const auto flat = [&](Tensor t, const Linear& l) { return t.view({tokens, l.out_features()}); };
    q_.forward(s.norm1, flat(in.q, q_), ctx);
    k_.forward(s.norm1, flat(in.k, k_), ctx);
    v_.forward(s.norm1, flat(in.v, v_), ctx);
    rotate(in.q, rope, false, ctx);
    rotate(in.k, rope, false, ctx);
    const AttentionInputs spread = attention_->spread(in, arena(Activation::kQkv), ctx);
    s.q = spread.q;
    s.k = spread.k;
    s.v = spread.v;
  }
  if (!s.attention.defined()) {
    const AttentionInputs in{.q = s.q, .k = s.k, .v = s.v};
    s.attention = take(Activation::kAttention, {tokens, num_heads_, head_dim_}, "block.attention");
    s.lse = arena(Activation::kAttention).take(DType::kF32, attention_->lse_shape(in), "block.lse");
    attention_->forward(in, s.attention, s.lse, rope.bias, ctx);
  }
  if (!s.middle.defined()) {
    s.middle = take(Activation::kMiddle, s.x.shape, "block.middle");
    o_.forward(s.attention.view({tokens, num_heads_ * head_dim_}), s.middle, ctx);
    ctx.kernels().add({.a = s.x, .b = s.middle, .out = s.middle}, ctx.stream());
  }
}

void Block::compute_mlp_part(Saved& s, const StepContext& ctx, const RecomputePolicy& keep) const {
  const std::int64_t tokens = s.x.shape[0];
  const auto arena = [&](Activation a) -> Arena& {
    return keep.keeps(a) ? ctx.saved : ctx.scratch;
  };
  if (!s.norm2.defined()) {
    s.norm2 = arena(Activation::kNorm).take(s.x.dtype, s.x.shape, "block.norm2");
    s.rstd2 = arena(Activation::kNorm).take(DType::kF32, {tokens}, "block.rstd2");
    norm_forward(*gain2_, s.middle, s.norm2, s.rstd2, ctx);
  }
  if (!s.gate.defined()) {
    s.gate = arena(Activation::kGateUp).take(s.x.dtype, {tokens, ffn_}, "block.gate");
    s.up = arena(Activation::kGateUp).take(s.x.dtype, {tokens, ffn_}, "block.up");
    gate_.forward(s.norm2, s.gate, ctx);
    up_.forward(s.norm2, s.up, ctx);
  }
  if (!s.product.defined()) {
    s.product = arena(Activation::kSwiGlu).take(s.x.dtype, {tokens, ffn_}, "block.product");
    ctx.kernels().swiglu_forward({.gate = s.gate, .up = s.up, .out = s.product}, ctx.stream());
  }
}

Block::Saved Block::forward(Tensor x, Tensor out, const RopeTables& rope,
                            const RecomputePolicy& policy, const StepContext& step) const {
  const StepContext ctx = step.with_pattern(pattern_);
  auto scope = ctx.scratch.scope();
  Saved s;
  s.x = x;
  compute_attention_part(s, rope, ctx, policy);
  compute_mlp_part(s, ctx, policy);
  down_.forward(s.product, out, ctx);
  ctx.kernels().add({.a = s.middle, .b = out, .out = out}, ctx.stream());

  const auto drop = [&](Activation a, std::initializer_list<Tensor*> tensors) {
    if (!policy.keeps(a))
      for (Tensor* t : tensors) *t = Tensor{};
  };
  drop(Activation::kNorm, {&s.norm1, &s.rstd1, &s.norm2, &s.rstd2});
  drop(Activation::kQkv, {&s.q, &s.k, &s.v});
  drop(Activation::kAttention, {&s.attention, &s.lse});
  drop(Activation::kMiddle, {&s.middle});
  drop(Activation::kGateUp, {&s.gate, &s.up});
  drop(Activation::kSwiGlu, {&s.product});
  return s;
}

void Block::backward(const Saved& saved, Tensor grad, const RopeTables& rope,
                     const StepContext& step) const {
  const StepContext ctx = step.with_pattern(pattern_);
  auto scope = ctx.scratch.scope();
  Saved s = saved;
  const RecomputePolicy to_scratch = RecomputePolicy::forward_only();
  compute_attention_part(s, rope, ctx, to_scratch);
  {
    auto mlp_scope = ctx.scratch.scope();
    Saved with_mlp = s;
    compute_mlp_part(with_mlp, ctx, to_scratch);
    backward_mlp(with_mlp, grad, ctx);
  }
  backward_attention(s, grad, rope, ctx);
}

void Block::backward_mlp(const Saved& s, Tensor grad, const StepContext& ctx) const {
  const Tensor dproduct = ctx.scratch.take(s.x.dtype, s.product.shape, "block.dproduct");
  const Tensor dgate = ctx.scratch.take(s.x.dtype, s.gate.shape, "block.dgate");
  const Tensor dnorm = ctx.scratch.take(DType::kF32, s.x.shape, "block.dnorm");
  down_.backward(s.product, grad, dproduct, GradMode::kOverwrite, ctx);
  const Tensor dup = dproduct;  // the kernel reads dout before it writes dup
  ctx.kernels().swiglu_backward(
      {.gate = s.gate, .up = s.up, .dout = dproduct, .dgate = dgate, .dup = dup}, ctx.stream());
  gate_.backward(s.norm2, dgate, dnorm, GradMode::kOverwrite, ctx);
  up_.backward(s.norm2, dup, dnorm, GradMode::kAccumulate, ctx);
  norm_backward(*gain2_, s.middle, s.rstd2, dnorm, grad, ctx);
}

void Block::backward_attention(const Saved& s, Tensor grad, const RopeTables& rope,
                               const StepContext& ctx) const {
  const std::int64_t tokens = s.x.shape[0];
  Arena& scratch = ctx.scratch;
  const Tensor dnorm = scratch.take(DType::kF32, s.x.shape, "block.dnorm");
  const Shape q_shape{tokens, num_heads_, head_dim_}, k_shape{tokens, num_kv_heads_, head_dim_};
  const AttentionGradients sums{.dq = scratch.take(DType::kF32, q_shape, "block.dq_sum"),
                                .dk = scratch.take(DType::kF32, k_shape, "block.dk_sum"),
                                .dv = scratch.take(DType::kF32, k_shape, "block.dv_sum")};
  {
    auto scope = scratch.scope();
    const Tensor dattention = scratch.take(s.x.dtype, s.attention.shape, "block.dattention");
    const Shape flat{tokens, num_heads_ * head_dim_};
    o_.backward(s.attention.view(flat), grad, dattention.view(flat), GradMode::kOverwrite, ctx);
    attention_->backward({.q = s.q, .k = s.k, .v = s.v}, s.attention, s.lse, dattention, rope.bias,
                         sums, ctx);
  }
  const auto project = [&](Tensor sum, bool rotated, const Linear& linear, GradMode mode) {
    auto scope = scratch.scope();
    Tensor d = sum;
    if (s.x.dtype != DType::kF32) {
      d = scratch.take(s.x.dtype, sum.shape, "block.dqkv");
      ctx.kernels().copy({.src = sum, .dst = d}, ctx.stream());
    }
    if (rotated) rotate(d, rope, true, ctx);
    linear.backward(s.norm1, d.view({tokens, linear.out_features()}), dnorm, mode, ctx);
  };
  project(sums.dq, true, q_, GradMode::kOverwrite);
  project(sums.dk, true, k_, GradMode::kAccumulate);
  project(sums.dv, false, v_, GradMode::kAccumulate);
  norm_backward(*gain1_, s.x, s.rstd1, dnorm, grad, ctx);
}

}  // namespace farspan
