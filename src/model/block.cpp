#include "model/block.h"

#include <cmath>

namespace farspan {

Block::Block(const config::Model& model, int layer, int pattern, ParameterStore& parameters,
             const Attention& attention)
    : attention_(&attention),
      pattern_(pattern),
      layer_(layer),
      hidden_(model.hidden_size()),
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

void Block::norm_forward(const Parameter& gain, Tensor x, const Normed& out,
                         const StepContext& ctx) const {
  ctx.kernels().rmsnorm_forward(
      {.x = x, .weight = gain.working, .y = out.y, .rstd = out.rstd, .eps = eps_}, ctx.stream());
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

void Block::rotate(Tensor x, const RopeTables& rope, const TokenTile& tile, bool inverse,
                   const StepContext& ctx) const {
  if (!rope.cos.defined() || attention(ctx).rotates()) return;
  ctx.kernels().rope_apply({.x = x,
                            .cos = rope.cos.rows(tile.begin, tile.count),
                            .sin = rope.sin.rows(tile.begin, tile.count),
                            .inverse = inverse},
                           ctx.stream());
}

namespace {

Arena& arena_of(Activation activation, const RecomputePolicy& policy, const StepContext& ctx) {
  return policy.of(activation) == Keep::kSave ? ctx.saved : ctx.scratch;
}

// A tile's rows: of what is kept for all tokens, or the first ones of room for one tile.
Tensor tile_rows(const Tensor& kept, const Tensor& room, const TokenTile& tile) {
  return kept.defined() ? kept.rows(tile.begin, tile.count) : room.rows(0, tile.count);
}
Block::Normed tile_rows(const Block::Normed& kept, const Block::Normed& room,
                        const TokenTile& tile) {
  return {tile_rows(kept.y, room.y, tile), tile_rows(kept.rstd, room.rstd, tile)};
}
Block::Mlp tile_rows(const Block::Mlp& kept, const Block::Mlp& room, const TokenTile& tile) {
  return {.norm = tile_rows(kept.norm, room.norm, tile),
          .gate = tile_rows(kept.gate, room.gate, tile),
          .up = tile_rows(kept.up, room.up, tile),
          .product = tile_rows(kept.product, room.product, tile)};
}

}  // namespace

Block::Normed Block::take_norm(Arena& arena, DType dtype, std::int64_t rows) const {
  return {.y = arena.take(dtype, {rows, hidden_}, "block.norm"),
          .rstd = arena.take(DType::kF32, {rows}, "block.rstd")};
}

void Block::compute_qkv(Saved& s, const RopeTables& rope, const RecomputePolicy& policy,
                        const StepContext& ctx) const {
  if (s.q.defined()) return;
  const std::int64_t tokens = s.x.shape[0];
  const DType dtype = s.x.dtype;
  const Normed done = s.norm;
  if (!done.y.defined() && policy.of(Activation::kNorm) == Keep::kSave)
    s.norm = take_norm(ctx.saved, dtype, tokens);
  // What an exchange leaves behind is not kept.
  Arena& local = attention(ctx).spreads() ? ctx.scratch : arena_of(Activation::kQkv, policy, ctx);
  const AttentionInputs in{.q = local.take(dtype, {tokens, num_heads_, head_dim_}, "block.q"),
                           .k = local.take(dtype, {tokens, num_kv_heads_, head_dim_}, "block.k"),
                           .v = local.take(dtype, {tokens, num_kv_heads_, head_dim_}, "block.v")};
  {
    auto scope = ctx.scratch.scope();
    const TokenTiles tiles = TokenTiles::even(tokens, ctx);
    Normed room;
    if (!s.norm.y.defined()) room = take_norm(ctx.scratch, dtype, tiles.largest());
    for (const TokenTile& tile : tiles) {
      const Normed norm = tile_rows(s.norm, room, tile);
      if (!done.y.defined()) norm_forward(*gain1_, s.x.rows(tile.begin, tile.count), norm, ctx);
      const auto project = [&](const Linear& linear, Tensor all, bool rotated) {
        const Tensor rows = all.rows(tile.begin, tile.count);
        linear.forward(norm.y, rows.view({tile.count, linear.out_features()}), ctx);
        if (rotated) rotate(rows, rope, tile, false, ctx);
      };
      project(q_, in.q, true);
      project(k_, in.k, true);
      project(v_, in.v, false);
    }
  }
  const AttentionInputs spread =
      attention(ctx).spread(in, arena_of(Activation::kQkv, policy, ctx), ctx);
  s.q = spread.q;
  s.k = spread.k;
  s.v = spread.v;
}

void Block::compute_attention(Saved& s, const RopeTables& rope, const RecomputePolicy& policy,
                              const StepContext& ctx) const {
  if (s.attention.defined()) return;
  const AttentionInputs in{.q = s.q, .k = s.k, .v = s.v};
  const bool offload = policy.of(Activation::kAttention) == Keep::kOffload;
  const auto take = [&](DType dtype, Shape shape, std::string_view name) {
    if (offload) return ctx.stash->take(name, layer_, dtype, shape);
    return arena_of(Activation::kAttention, policy, ctx).take(dtype, shape, name);
  };
  s.attention = take(s.x.dtype, {s.x.shape[0], num_heads_, head_dim_}, "block.attention");
  s.lse = take(DType::kF32, attention(ctx).lse_shape(in), "block.lse");
  attention(ctx).forward(in, s.attention, s.lse, rope.bias, ctx);
  if (!offload) return;
  ctx.stash->put("block.attention", layer_);
  ctx.stash->put("block.lse", layer_);
}

bool Block::compute_branch(Saved& s, const RecomputePolicy& policy, const StepContext& ctx) const {
  if (s.middle.defined()) return false;
  const Shape flat{s.x.shape[0], num_heads_ * head_dim_};
  s.middle = arena_of(Activation::kMiddle, policy, ctx).take(s.x.dtype, s.x.shape, "block.middle");
  o_.forward(s.attention.view(flat), s.middle, ctx);
  return true;
}

Block::Mlp Block::take_tile(const Mlp& kept, DType dtype, std::int64_t rows,
                            const StepContext& ctx) const {
  const auto take = [&](const Tensor& all, std::string_view name) {
    return all.defined() ? Tensor{} : ctx.scratch.take(dtype, {rows, ffn_}, name);
  };
  Mlp room;
  if (!kept.norm.y.defined()) room.norm = take_norm(ctx.scratch, dtype, rows);
  room.gate = take(kept.gate, "block.gate");
  room.up = take(kept.up, "block.up");
  room.product = take(kept.product, "block.product");
  return room;
}

void Block::compute_mlp(Tensor x, Tensor middle, const Mlp& tile, const Mlp& done,
                        const StepContext& ctx) const {
  if (done.norm.y.defined()) {
    if (x.defined()) ctx.kernels().add({.a = x, .b = middle, .out = middle}, ctx.stream());
  } else if (x.defined()) {
    ctx.kernels().rmsnorm_forward({.x = x,
                                   .weight = gain2_->working,
                                   .y = tile.norm.y,
                                   .rstd = tile.norm.rstd,
                                   .eps = eps_,
                                   .residual = middle,
                                   .sum = middle},
                                  ctx.stream());
  } else {
    norm_forward(*gain2_, middle, tile.norm, ctx);
  }
  if (!done.gate.defined()) {
    gate_.forward(tile.norm.y, tile.gate, ctx);
    up_.forward(tile.norm.y, tile.up, ctx);
  }
  if (!done.product.defined())
    ctx.kernels().swiglu_forward({.gate = tile.gate, .up = tile.up, .out = tile.product},
                                 ctx.stream());
}

void Block::forward_mlp(Saved& s, Tensor out, const RecomputePolicy& policy,
                        const StepContext& ctx) const {
  const std::int64_t tokens = s.x.shape[0];
  const auto kept = [&](Activation a) { return policy.of(a) == Keep::kSave; };
  const auto take = [&](std::string_view name) {
    return ctx.saved.take(s.x.dtype, {tokens, ffn_}, name);
  };
  if (kept(Activation::kNorm)) s.mlp.norm = take_norm(ctx.saved, s.x.dtype, tokens);
  if (kept(Activation::kGateUp)) {
    s.mlp.gate = take("block.gate");
    s.mlp.up = take("block.up");
  }
  if (kept(Activation::kSwiGlu)) s.mlp.product = take("block.product");
  auto scope = ctx.scratch.scope();
  const TokenTiles tiles = TokenTiles::even(tokens, ctx);
  const Mlp room = take_tile(s.mlp, s.x.dtype, tiles.largest(), ctx);
  for (const TokenTile& t : tiles) {
    const Mlp tile = tile_rows(s.mlp, room, t);
    const Tensor middle = s.middle.rows(t.begin, t.count), out_rows = out.rows(t.begin, t.count);
    compute_mlp(s.x.rows(t.begin, t.count), middle, tile, {}, ctx);
    down_.forward(tile.product, out_rows, ctx);
    ctx.kernels().add({.a = middle, .b = out_rows, .out = out_rows}, ctx.stream());
  }
}

Block::Saved Block::forward(Tensor x, Tensor out, const RopeTables& rope,
                            const RecomputePolicy& policy, const StepContext& step) const {
  const StepContext ctx = step.for_layer(layer_, pattern_);
  auto scope = ctx.scratch.scope();
  Saved s;
  s.x = x;
  {
    auto section = ctx.trace.section("block.attention", layer_);
    compute_qkv(s, rope, policy, ctx);
    compute_attention(s, rope, policy, ctx);
    compute_branch(s, policy, ctx);
  }
  {
    auto section = ctx.trace.section("block.mlp", layer_);
    forward_mlp(s, out, policy, ctx);
  }

  const auto drop = [&](Activation a, std::initializer_list<Tensor*> tensors) {
    if (policy.of(a) == Keep::kRecompute)
      for (Tensor* t : tensors) *t = Tensor{};
  };
  drop(Activation::kQkv, {&s.q, &s.k, &s.v});
  drop(Activation::kAttention, {&s.attention, &s.lse});
  drop(Activation::kMiddle, {&s.middle});
  return s;
}

void Block::backward(const Saved& saved, Tensor grad, const RopeTables& rope,
                     const StepContext& step) const {
  const StepContext ctx = step.for_layer(layer_, pattern_);
  auto scope = ctx.scratch.scope();
  Saved s = saved;
  const RecomputePolicy to_scratch = RecomputePolicy::forward_only();
  {
    auto section = ctx.trace.section("block.attention.recompute", layer_);
    compute_qkv(s, rope, to_scratch, ctx);
    compute_attention(s, rope, to_scratch, ctx);
  }
  {
    auto section = ctx.trace.section("block.mlp.backward", layer_);
    auto mlp_scope = ctx.scratch.scope();
    Saved with_middle = s;
    const bool lacks_x = compute_branch(with_middle, to_scratch, ctx);
    backward_mlp(with_middle, lacks_x, grad, ctx);
  }
  auto section = ctx.trace.section("block.attention.backward", layer_);
  backward_attention(s, grad, rope, ctx);
}

void Block::backward_mlp(const Saved& s, bool middle_lacks_x, Tensor grad,
                         const StepContext& ctx) const {
  const DType dtype = s.x.dtype;
  const TokenTiles tiles = TokenTiles::even(s.x.shape[0], ctx);
  const std::int64_t rows = tiles.largest();
  const Mlp room = take_tile(s.mlp, dtype, rows, ctx);
  const Tensor dproduct_room = ctx.scratch.take(dtype, {rows, ffn_}, "block.dproduct");
  const Tensor dnorm_room = ctx.scratch.take(DType::kF32, {rows, hidden_}, "block.dnorm");
  for (const TokenTile& t : tiles) {
    const Mlp tile = tile_rows(s.mlp, room, t);
    const Tensor middle = s.middle.rows(t.begin, t.count), grad_rows = grad.rows(t.begin, t.count);
    const Tensor dproduct = dproduct_room.rows(0, t.count), dnorm = dnorm_room.rows(0, t.count);
    const Tensor x = middle_lacks_x ? s.x.rows(t.begin, t.count) : Tensor{};
    compute_mlp(x, middle, tile, s.mlp, ctx);
    down_.backward(tile.product, grad_rows, dproduct, GradMode::kOverwrite, ctx);
    // Nobody reads gate after this: its gradient goes there, and that of up where dproduct is.
    const Tensor dgate = tile.gate, dup = dproduct;
    ctx.kernels().swiglu_backward(
        {.gate = tile.gate, .up = tile.up, .dout = dproduct, .dgate = dgate, .dup = dup},
        ctx.stream());
    gate_.backward(tile.norm.y, dgate, dnorm, GradMode::kOverwrite, ctx);
    up_.backward(tile.norm.y, dup, dnorm, GradMode::kAccumulate, ctx);
    norm_backward(*gain2_, middle, tile.norm.rstd, dnorm, grad_rows, ctx);
  }
}

void Block::backward_attention(const Saved& s, Tensor grad, const RopeTables& rope,
                               const StepContext& ctx) const {
  const std::int64_t tokens = s.x.shape[0];
  Arena& scratch = ctx.scratch;
  const Shape q_shape{tokens, num_heads_, head_dim_}, k_shape{tokens, num_kv_heads_, head_dim_};
  const AttentionGradients sums{.dq = scratch.take(DType::kF32, q_shape, "block.dq_sum"),
                                .dk = scratch.take(DType::kF32, k_shape, "block.dk_sum"),
                                .dv = scratch.take(DType::kF32, k_shape, "block.dv_sum")};
  {
    auto scope = scratch.scope();
    const Tensor dattention = scratch.take(s.x.dtype, s.attention.shape, "block.dattention");
    const Shape flat{tokens, num_heads_ * head_dim_};
    o_.backward(s.attention.view(flat), grad, dattention.view(flat), GradMode::kOverwrite, ctx);
    attention(ctx).backward({.q = s.q, .k = s.k, .v = s.v}, s.attention, s.lse, dattention,
                            rope.bias, sums, ctx);
  }
  backward_qkv(s, sums, grad, rope, ctx);
}

void Block::backward_qkv(const Saved& s, const AttentionGradients& sums, Tensor grad,
                         const RopeTables& rope, const StepContext& ctx) const {
  const DType dtype = s.x.dtype;
  const TokenTiles tiles = TokenTiles::even(s.x.shape[0], ctx);
  Normed room;
  if (!s.norm.y.defined()) room = take_norm(ctx.scratch, dtype, tiles.largest());
  const Tensor dnorm_room =
      ctx.scratch.take(DType::kF32, {tiles.largest(), hidden_}, "block.dnorm");
  for (const TokenTile& t : tiles) {
    const Normed norm = tile_rows(s.norm, room, t);
    const Tensor x = s.x.rows(t.begin, t.count), dnorm = dnorm_room.rows(0, t.count);
    if (!s.norm.y.defined()) norm_forward(*gain1_, x, norm, ctx);
    const auto project = [&](Tensor sum, bool rotated, const Linear& linear, GradMode mode) {
      auto scope = ctx.scratch.scope();
      Tensor d = sum.rows(t.begin, t.count);
      if (dtype != DType::kF32) {
        const Tensor rounded = ctx.scratch.take(dtype, d.shape, "block.dqkv");
        ctx.kernels().copy({.src = d, .dst = rounded}, ctx.stream());
        d = rounded;
      }
      if (rotated) rotate(d, rope, t, true, ctx);
      linear.backward(norm.y, d.view({t.count, linear.out_features()}), dnorm, mode, ctx);
    };
    project(sums.dq, true, q_, GradMode::kOverwrite);
    project(sums.dk, true, k_, GradMode::kAccumulate);
    project(sums.dv, false, v_, GradMode::kAccumulate);
    norm_backward(*gain1_, x, norm.rstd, dnorm, grad.rows(t.begin, t.count), ctx);
  }
}

}  // namespace farspan
