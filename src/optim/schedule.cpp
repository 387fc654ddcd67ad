#include "optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/error.h"

namespace farspan {
namespace {

// Steps (>= 1) or a share of `total` (< 1), as config.Quantity STEPS_OR_SHARE stores them.
std::int64_t steps_of(double steps_or_share, std::int64_t total) {
  FARSPAN_CHECK(steps_or_share >= 0, "{} steps", steps_or_share);
  const double steps =
      steps_or_share < 1 ? steps_or_share * static_cast<double>(total) : steps_or_share;
  return std::llround(steps);
}

}  // namespace

LearningRateSchedule LearningRateSchedule::from(const config::Schedule& schedule, double peak_lr,
                                                std::int64_t total_steps) {
  FARSPAN_CHECK(peak_lr >= 0 && std::isfinite(peak_lr), "peak learning rate {}", peak_lr);
  FARSPAN_CHECK(total_steps >= 1, "{} total steps", total_steps);
  LearningRateSchedule out;
  out.peak_ = peak_lr;
  out.total_ = total_steps;
  out.min_ratio_ = schedule.min_lr_ratio();
  out.warmup_ = steps_of(schedule.warmup(), total_steps);
  const std::int64_t after_warmup = std::max<std::int64_t>(0, total_steps - out.warmup_);
  const std::string& type = schedule.type();
  if (type == "cosine" || type == "linear") {
    out.type_ = type == "cosine" ? Type::kCosine : Type::kLinear;
    out.decay_ = after_warmup;
  } else if (type == "wsd") {
    out.type_ = Type::kWsd;
    out.decay_ = std::min(steps_of(schedule.decay(), total_steps), after_warmup);
  } else {
    FARSPAN_CHECK(type == "constant", "schedule type '{}'", type);
    out.type_ = Type::kConstant;
  }
  return out;
}

double LearningRateSchedule::minimum() const { return type_ == Type::kConstant ? 1.0 : min_ratio_; }

double LearningRateSchedule::at(std::int64_t step) const {
  FARSPAN_CHECK(step >= 0, "step {}", step);
  if (step < warmup_) return peak_ * static_cast<double>(step + 1) / static_cast<double>(warmup_);
  if (step >= total_) return peak_ * minimum();
  const std::int64_t begin = decay_begin();
  if (step < begin) return peak_;
  // Here begin <= step < total, so decay_ > 0 unless the type is constant and begin == total.
  const double p = static_cast<double>(step - begin) / static_cast<double>(decay_);
  if (type_ == Type::kCosine) {
    const double fall = 0.5 * (1.0 + std::cos(std::numbers::pi * p));
    return peak_ * (min_ratio_ + (1.0 - min_ratio_) * fall);
  }
  return peak_ * (1.0 - (1.0 - min_ratio_) * p);
}

std::string LearningRateSchedule::description() const {
  static constexpr const char* kNames[] = {"cosine", "wsd", "linear", "constant"};
  std::string out = kNames[static_cast<int>(type_)];
  out += warmup_ > 0 ? fmt::format(": {} steps of warmup to {:.3g}", warmup_, peak_)
                     : fmt::format(": {:.3g} from the first step", peak_);
  if (decay_ == 0) return out;
  if (decay_begin() > warmup_) out += fmt::format(", constant until step {}", decay_begin());
  return out + fmt::format(", then down to {:.3g} at step {}", peak_ * min_ratio_, total_);
}

}  // namespace farspan
