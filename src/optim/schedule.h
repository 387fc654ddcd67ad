// The learning rate of every optimizer step, as a pure function of the step.
//
//   auto schedule = LearningRateSchedule::from(config.schedule(), config.optimizer().lr(), steps);
//   adamw.lr = schedule.at(step);        // step 0 is the first: it leads from step 0 to step 1
//
// Since nothing is remembered, a resume needs no state, and a run whose total number of steps was
// raised simply continues on the longer schedule.
#pragma once

#include <cstdint>
#include <string>

#include "config/run_config.pb.h"

namespace farspan {

// With W warmup steps, T total steps and r = min_lr_ratio, the factor of the peak rate at step s is
//   s < W        (s + 1) / W                      linear warmup; never 0, the peak at s = W - 1
//   constant     1
//   linear       1 - (1 - r) p                    p = (s - W) / (T - W)
//   cosine       r + (1 - r) (1 + cos(pi p)) / 2  (Loshchilov & Hutter 2017, eq. 5, one cycle)
//   wsd          1 until T - D, then 1 - (1 - r) (s - (T - D)) / D
//                (warmup-stable-decay, Hu et al. 2024, with the linear decay of Haegele et al.
//                2024)
// and r from step T on. The last step of a run, T - 1, is thus just above the minimum: with r = 0
// no step is spent at rate 0. Steps beyond T keep the final factor (1 for constant).
class LearningRateSchedule {
 public:
  // `warmup` and `decay` of the schedule are steps when >= 1, and shares of `total_steps` (rounded
  // to the nearest step) below 1. A decay that would reach into the warmup is shortened to what is
  // left. `peak_lr` >= 0, `total_steps` >= 1. An unknown type is a bug: the loader refuses it.
  static LearningRateSchedule from(const config::Schedule& schedule, double peak_lr,
                                   std::int64_t total_steps);

  // The rate that step `step` (>= 0) applies.
  double at(std::int64_t step) const;

  double peak() const { return peak_; }
  std::int64_t total_steps() const { return total_; }
  std::int64_t warmup_steps() const { return warmup_; }
  // First step whose rate is below the peak for good; total_steps() for constant.
  std::int64_t decay_begin() const { return total_ - decay_; }

  // "cosine: 20 steps of warmup to 1e-03, then down to 1e-04 at step 100"
  std::string description() const;

 private:
  enum class Type : std::uint8_t { kCosine, kWsd, kLinear, kConstant };

  LearningRateSchedule() = default;
  double minimum() const;  // of the factor: r, or 1 for constant

  Type type_ = Type::kConstant;
  double peak_ = 0;
  double min_ratio_ = 1;
  std::int64_t total_ = 1;
  std::int64_t warmup_ = 0;
  std::int64_t decay_ = 0;  // steps at the end over which the rate falls
};

}  // namespace farspan
