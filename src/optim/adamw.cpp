#include "optim/adamw.h"

#include <utility>

namespace farspan {

AdamW::AdamW(const config::Optimizer& options, std::vector<OptimizerParameter> parameters)
    : options_(options), parameters_(std::move(parameters)) {
  FARSPAN_CHECK(options.betas_size() == 2, "{} betas", options.betas_size());
}

void AdamW::allocate(Arena& arena, Backend& backend) {
  scalars_.grad_norm = arena.take(DType::kF64, {1}, "adamw.grad_norm");
  scalars_.applied_steps = arena.take(DType::kI64, {1}, "adamw.applied_steps");
  scalars_.skipped_steps = arena.take(DType::kI64, {1}, "adamw.skipped_steps");
  sum_squares_ = arena.take(DType::kF64, {1}, "adamw.sum_squares");
  grad_scale_ = arena.take(DType::kF32, {1}, "adamw.grad_scale");
  skip_ = arena.take(DType::kI32, {1}, "adamw.skip");
  set_counters(0, 0, backend);
}

void AdamW::set_counters(std::int64_t applied, std::int64_t skipped, Backend& backend) {
  backend.kernels().fill({.dst = scalars_.applied_steps, .value = static_cast<double>(applied)},
                         backend.stream());
  backend.kernels().fill({.dst = scalars_.skipped_steps, .value = static_cast<double>(skipped)},
                         backend.stream());
}

void AdamW::step(double lr, Tensor loss_sum, Tensor valid_count, Tensor flat_gradients,
                 Backend& backend) {
  Kernels& k = backend.kernels();
  Stream& stream = backend.stream();
  k.squared_norm({.x = flat_gradients, .sum = sum_squares_, .mode = GradMode::kOverwrite}, stream);
  k.clip({.sum_squares = sum_squares_,
          .loss_sum = loss_sum,
          .valid_count = valid_count,
          .max_norm = options_.grad_clip(),
          .grad_scale = grad_scale_,
          .grad_norm = scalars_.grad_norm,
          .skip = skip_,
          .applied_steps = scalars_.applied_steps,
          .skipped_steps = scalars_.skipped_steps},
         stream);
  for (const OptimizerParameter& p : parameters_) {
    const bool f32 = p.working.data == p.master.data;
    k.adamw({.master = p.master,
             .m = p.m,
             .v = p.v,
             .grad = p.grad,
             .working = f32 ? Tensor{} : p.working,
             .grad_scale = grad_scale_,
             .skip = skip_,
             .applied_steps = scalars_.applied_steps,
             .lr = static_cast<float>(lr),
             .beta1 = static_cast<float>(options_.betas(0)),
             .beta2 = static_cast<float>(options_.betas(1)),
             .eps = static_cast<float>(options_.eps()),
             .weight_decay = p.decays ? static_cast<float>(options_.weight_decay()) : 0.0f},
            stream);
  }
}

}  // namespace farspan
