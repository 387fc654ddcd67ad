// y = x W^T. W: (out, in), as Hugging Face stores it.
#pragma once

#include "model/parameters.h"
#include "parallel/step_context.h"

namespace farspan {

class Linear {
 public:
  Linear() = default;
  explicit Linear(Parameter& weight) : weight_(&weight) {}

  // x (T, in), y (T, out), both compute.
  void forward(Tensor x, Tensor y, const StepContext& ctx) const {
    ctx.kernels().matmul({.a = x, .b = weight_->working, .out = y, .trans_b = true}, ctx.stream());
  }
  // dx = (or +=, f32) dy W;  dW += dy^T x.
  void backward(Tensor x, Tensor dy, Tensor dx, GradMode dx_mode, const StepContext& ctx) const {
    ctx.kernels().matmul({.a = dy, .b = weight_->working, .out = dx, .mode = dx_mode},
                         ctx.stream());
    ctx.kernels().matmul(
        {.a = dy, .b = x, .out = weight_->grad, .trans_a = true, .mode = GradMode::kAccumulate},
        ctx.stream());
  }
  std::int64_t out_features() const { return weight_->shape[0]; }

 private:
  Parameter* weight_ = nullptr;
};

}  // namespace farspan
