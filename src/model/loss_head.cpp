#include "model/loss_head.h"

#include <algorithm>

namespace farspan {

LossHead::LossHead(Parameter& gain, Parameter& head, float eps)
    : gain_(&gain), head_(&head), eps_(eps) {}

std::int64_t LossHead::chunk_rows() const {
  constexpr std::int64_t kChunkBytes = std::int64_t{32} << 20;
  return std::clamp<std::int64_t>(kChunkBytes / (4 * head_->shape[0]) / 64 * 64, 64, 4096);
}

std::int64_t LossHead::largest_chunk(std::int64_t tokens, const StepContext& ctx) const {
  std::int64_t most = 1;
  for (std::int64_t t = 0, end = 0; t < tokens; t = end) {
    end = chunk_end(t, tokens, ctx);
    most = std::max(most, end - t);
  }
  return most;
}

std::int64_t LossHead::chunk_end(std::int64_t row, std::int64_t tokens,
                                 const StepContext& ctx) const {
  if (ctx.row_blocks.empty()) return std::min(row + chunk_rows(), tokens);
  return *std::upper_bound(ctx.row_blocks.begin(), ctx.row_blocks.end(), row);
}

void LossHead::norm(Tensor x, Tensor y, Tensor rstd, const StepContext& ctx) const {
  ctx.kernels().rmsnorm_forward(
      {.x = x, .weight = gain_->working, .y = y, .rstd = rstd, .eps = eps_}, ctx.stream());
}

void LossHead::forward_backward(Tensor x, Tensor labels, Tensor grad, const LossSums& sums,
                                const StepContext& ctx) const {
  auto scope = ctx.scratch.scope();
  const std::int64_t tokens = x.shape[0], vocab = head_->shape[0];
  const Tensor y = ctx.scratch.take(x.dtype, x.shape, "loss.norm");
  const Tensor rstd = ctx.scratch.take(DType::kF32, {tokens}, "loss.rstd");
  norm(x, y, rstd, ctx);
  const std::int64_t chunk = largest_chunk(tokens, ctx);
  const Tensor logits = ctx.scratch.take(DType::kF32, {chunk, vocab}, "loss.logits");
  const Tensor dlogits =
      x.dtype == DType::kF32 ? logits : ctx.scratch.take(x.dtype, {chunk, vocab}, "loss.dlogits");
  for (std::int64_t t = 0, rows = 0; t < tokens; t += rows) {
    rows = chunk_end(t, tokens, ctx) - t;
    const Tensor y_rows = y.rows(t, rows);
    ctx.kernels().matmul(
        {.a = y_rows, .b = head_->working, .out = logits.rows(0, rows), .trans_b = true},
        ctx.stream());
    ctx.kernels().cross_entropy({.logits = logits.rows(0, rows),
                                 .labels = labels.rows(t, rows),
                                 .dlogits = dlogits.rows(0, rows),
                                 .nll = {},
                                 .loss_sum = sums.loss_sum,
                                 .valid_count = sums.valid_count},
                                ctx.stream());
    // The gradient of the norm's output goes where its input's gradient will be.
    Linear(*head_).backward(y_rows, dlogits.rows(0, rows), grad.rows(t, rows), GradMode::kOverwrite,
                            ctx);
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
  const std::int64_t tokens = x.shape[0];
  const std::int64_t chunk = largest_chunk(tokens, ctx);
  const Tensor chunk_logits =
      ctx.scratch.take(DType::kF32, {chunk, head_->shape[0]}, "loss.logits");
  for (std::int64_t t = 0, rows = 0; t < tokens; t += rows) {
    rows = chunk_end(t, tokens, ctx) - t;
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
