// The optimizer's step on the device: global norm, gate, clip and AdamW, without a host read.
//
//   AdamW adamw(config.optimizer(), parameters);
//   adamw.allocate(arena, backend);
//   adamw.step(lr, {.loss_sum = ..., .valid_count = ...}, flat_gradients, backend);
//
// Gradients are those of the summed loss; dividing by the global count of valid tokens happens
// here, once (never per micro-batch or per rank). A step whose loss or gradient is not finite
// touches nothing and is counted.
#pragma once

#include <vector>

#include "config/run_config.pb.h"
#include "core/arena.h"
#include "kernels/backend.h"

namespace farspan {

// One weight and what belongs to it; all f32 but `working` (compute dtype, or the master itself).
struct OptimizerParameter {
  Tensor master, working, grad, m, v;
  bool decays = false;
};

// Results of a step, on the device; the host may copy them when it wants to print them.
struct OptimizerScalars {
  Tensor grad_norm;      // (1) f64: global norm of the mean loss's gradient, before clipping
  Tensor applied_steps;  // (1) i64
  Tensor skipped_steps;  // (1) i64
};

class AdamW {
 public:
  AdamW(const config::Optimizer& options, std::vector<OptimizerParameter> parameters);

  // Device scalars; counters start at the given values (0, or a checkpoint's).
  void allocate(Arena& arena, Backend& backend);
  void set_counters(std::int64_t applied, std::int64_t skipped, Backend& backend);

  // `loss_sum` and `valid_count` (1) f64 and `flat_gradients` (n) f32 are global sums, equal on
  // every rank. Weight decay applies to matrices only.
  void step(double lr, Tensor loss_sum, Tensor valid_count, Tensor flat_gradients,
            Backend& backend);

  const OptimizerScalars& scalars() const { return scalars_; }

 private:
  config::Optimizer options_;
  std::vector<OptimizerParameter> parameters_;
  OptimizerScalars scalars_;
  Tensor sum_squares_;  // (1) f64
  Tensor grad_scale_;   // (1) f32
  Tensor skip_;         // (1) i32
};

}  // namespace farspan
