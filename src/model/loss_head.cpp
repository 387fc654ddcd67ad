#include "model/loss_head.h"

#include <algorithm>

namespace farspan {

LossHead::LossHead(Parameter& gain, Parameter& head, float eps)
    : gain_(&gain), head_(&head), eps_(eps) {}

std::int64_t LossHead::chunk_rows(DeviceKind device) const {
  const std::int64_t vocab = head_->shape[0];
  const bool gpu = device == DeviceKind::kCuda;
  const std::int64_t chunk_bytes = std::int64_t{gpu ? 768 : 32} << 20;
  const std::int64_t row_bytes = (gpu ? 4 + 2 : 4) * vocab;
  const std::int64_t multiple = gpu ? 128 : 64;
  return std::clamp<std::int64_t>(chunk_bytes / row_bytes / multiple * multiple, multiple, 4096);
}

TokenTiles LossHead::chunks(std::int64_t tokens, const StepContext& ctx) const {
  return TokenTiles::of(chunk_rows(ctx.backend.target()), tokens, ctx);
}

void LossHead::norm(Tensor x, Tensor y, Tensor rstd, const StepContext& ctx) const {
  ctx.kernels().rmsnorm_forward(
      {.x = x, .weight = gain_->working, .y = y, .rstd = rstd, .eps = eps_}, ctx.stream());
}

void LossHead::forward_backward(Tensor x, Tensor labels, Tensor grad, const LossSums& sums,
                                const StepContext& ctx) const {
  auto scope = ctx.scratch.scope();
  const std::int64_t tokens = x.shape[0], vocab = head_->shape[0];
  const Tensor rstd = ctx.scratch.take(DType::kF32, {tokens}, "loss.rstd");
  {
    auto chunk_scope = ctx.scratch.scope();
    const TokenTiles tiles = chunks(tokens, ctx);
    const std::int64_t most = tiles.largest();
    const Tensor y_room = ctx.scratch.take(x.dtype, {most, x.shape[1]}, "loss.norm");
    const Tensor logits_room = ctx.scratch.take(DType::kF32, {most, vocab}, "loss.logits");
    const Tensor dlogits_room = x.dtype == DType::kF32
                                    ? logits_room
                                    : ctx.scratch.take(x.dtype, {most, vocab}, "loss.dlogits");
    for (const auto& [t, rows] : tiles) {
      const Tensor y = y_room.rows(0, rows);
      const Tensor logits = logits_room.rows(0, rows), dlogits = dlogits_room.rows(0, rows);
      norm(x.rows(t, rows), y, rstd.rows(t, rows), ctx);
      ctx.kernels().matmul({.a = y, .b = head_->working, .out = logits, .trans_b = true},
                           ctx.stream());
      ctx.kernels().cross_entropy({.logits = logits,
                                   .labels = labels.rows(t, rows),
                                   .dlogits = dlogits,
                                   .nll = {},
                                   .loss_sum = sums.loss_sum,
                                   .valid_count = sums.valid_count},
                                  ctx.stream());
      // The gradient of the norm's output goes where its input's gradient will be.
      Linear(*head_).backward(y, dlogits, grad.rows(t, rows), GradMode::kOverwrite, ctx);
    }
  }
  ctx.kernels().rmsnorm_backward({.x = x,
                                  .weight = gain_->working,
                                  .rstd = rstd,
                                  .dy = grad,
                                  .dx = grad,
                                  .dweight = gain_->grad},
                                 ctx.stream());
}

void LossHead::forward(Tensor x, Tensor labels, const LossSums& sums, Tensor nll,
                       const StepContext& ctx) const {
  auto scope = ctx.scratch.scope();
  const TokenTiles tiles = chunks(x.shape[0], ctx);
  const Tensor chunk_logits =
      ctx.scratch.take(DType::kF32, {tiles.largest(), head_->shape[0]}, "loss.logits");
  for (const auto& [t, rows] : tiles) {
    logits(x.rows(t, rows), chunk_logits.rows(0, rows), ctx);
    ctx.kernels().cross_entropy({.logits = chunk_logits.rows(0, rows),
                                 .labels = labels.rows(t, rows),
                                 .dlogits = {},
                                 .nll = nll.defined() ? nll.rows(t, rows) : Tensor{},
                                 .loss_sum = sums.loss_sum,
                                 .valid_count = sums.valid_count},
                                ctx.stream());
  }
}

void LossHead::logits(Tensor x, Tensor logits, const StepContext& ctx) const {
  auto scope = ctx.scratch.scope();
  const Tensor y = ctx.scratch.take(x.dtype, x.shape, "loss.norm");
  const Tensor rstd = ctx.scratch.take(DType::kF32, {x.shape[0]}, "loss.rstd");
  norm(x, y, rstd, ctx);
  ctx.kernels().matmul({.a = y, .b = head_->working, .out = logits, .trans_b = true}, ctx.stream());
}

}  // namespace farspan
