#include "train/scoring_pass.h"

namespace farspan {

std::vector<float> nll_pass(const Transformer& model, const TokenTensors& batch,
                            const LossSums& sums, const StepContext& ctx) {
  auto scope = ctx.scratch.scope();
  const Tensor nll = ctx.scratch.take(DType::kF32, batch.labels.shape, "nll");
  model.forward(batch, sums, nll, ctx);
  std::vector<float> out(static_cast<std::size_t>(nll.numel()));
  ctx.backend.device().copy(reinterpret_cast<std::byte*>(out.data()), nll.data, nll.bytes(),
                            ctx.stream());
  ctx.stream().synchronize();
  return out;
}

std::vector<float> nll_pass(const Transformer& model, const TokenTensors& batch,
                            const StepContext& ctx) {
  auto scope = ctx.scratch.scope();
  const LossSums sums{.loss_sum = ctx.scratch.take(DType::kF64, {1}, "loss.sum"),
                      .valid_count = ctx.scratch.take(DType::kF64, {1}, "loss.valid")};
  for (const Tensor& t : {sums.loss_sum, sums.valid_count})
    ctx.kernels().fill({.dst = t, .value = 0}, ctx.stream());
  return nll_pass(model, batch, sums, ctx);
}

void logits_pass(const Transformer& model, const TokenTensors& batch,
                 std::span<const std::int64_t> rows, const TakeRowLogits& take,
                 const StepContext& ctx) {
  std::vector<float> host;
  model.row_logits(
      batch, rows,
      [&](std::int64_t first, const Tensor& logits) {
        host.resize(static_cast<std::size_t>(logits.numel()));
        ctx.backend.device().copy(reinterpret_cast<std::byte*>(host.data()), logits.data,
                                  logits.bytes(), ctx.stream());
        ctx.stream().synchronize();
        const auto vocab = static_cast<std::size_t>(logits.shape[1]);
        for (std::int64_t i = 0; i < logits.shape[0]; ++i)
          take(rows[static_cast<std::size_t>(first + i)],
               std::span(host).subspan(static_cast<std::size_t>(i) * vocab, vocab));
      },
      ctx);
}

}  // namespace farspan
