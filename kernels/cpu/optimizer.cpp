// Squared norm, the clipping gate and AdamW.
#include <cmath>

#include "kernels/cpu/state.h"

namespace farspan::cpu {

void CpuKernels::squared_norm(const SquaredNormArgs& args, Stream&) {
  constexpr std::int64_t kBlock = 65536;
  const std::int64_t n = args.x.numel();
  const std::int64_t num_blocks = (n + kBlock - 1) / kBlock;
  double* sums = impl_->doubles(num_blocks);
  const float* x = raw<const float>(args.x);
  parallel_for(impl_->config.num_threads, num_blocks, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i)
      sums[i] = impl_->rows.sum_squares(x + i * kBlock, std::min(kBlock, n - i * kBlock));
  });
  double total = args.mode == GradMode::kAccumulate ? *args.sum.ptr<double>() : 0.0;
  for (std::int64_t i = 0; i < num_blocks; ++i) total += sums[i];
  *args.sum.ptr<double>() = total;
}

void CpuKernels::clip(const ClipArgs& args, Stream&) {
  const double sum_squares = *args.sum_squares.ptr<double>();
  const double loss = *args.loss_sum.ptr<double>();
  const double valid = *args.valid_count.ptr<double>();
  const bool skip = !std::isfinite(sum_squares) || !std::isfinite(loss) || !(valid > 0);
  const double norm = std::sqrt(sum_squares) / valid;
  const double clip = args.max_norm > 0 && norm > args.max_norm ? args.max_norm / norm : 1.0;
  *args.grad_norm.ptr<double>() = norm;
  *args.grad_scale.ptr<float>() = skip ? 0.0f : static_cast<float>(clip / valid);
  *args.skip.ptr<std::int32_t>() = skip ? 1 : 0;
  *(skip ? args.skipped_steps : args.applied_steps).ptr<std::int64_t>() += 1;
}

void CpuKernels::adamw(const AdamWArgs& args, Stream&) {
  if (*args.skip.ptr<std::int32_t>() != 0) return;
  const auto step = static_cast<double>(*args.applied_steps.ptr<std::int64_t>());
  const double beta1 = args.beta1;
  const double beta2 = args.beta2;
  const double lr = args.lr;
  const AdamWScalars scalars{
      .grad_scale = *args.grad_scale.ptr<float>(),
      .beta1 = args.beta1,
      .one_minus_beta1 = static_cast<float>(1 - beta1),
      .beta2 = args.beta2,
      .one_minus_beta2 = static_cast<float>(1 - beta2),
      .decay = static_cast<float>(1 - lr * args.weight_decay),
      .step_size = static_cast<float>(lr / (1 - std::pow(beta1, step))),
      .inv_sqrt_bias2 = static_cast<float>(1 / std::sqrt(1 - std::pow(beta2, step))),
      .eps = args.eps};
  const DType working = args.working.defined() ? DType::kBF16 : DType::kF32;
  by_dtype(working, impl_->rows, [&]<typename T>(T, const TypedRowOps<T>& ops) {
    impl_->over_elements(args.master.numel(), [&](std::int64_t begin, std::int64_t end) {
      T* copy = args.working.defined() ? raw<T>(args.working) + begin : nullptr;
      ops.adamw(args.master.ptr<float>() + begin, args.m.ptr<float>() + begin,
                args.v.ptr<float>() + begin, args.grad.ptr<float>() + begin, copy, end - begin,
                scalars);
    });
  });
}

}  // namespace farspan::cpu
