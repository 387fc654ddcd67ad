// Every tolerance of every test, by what is compared and the dtype it was rounded to.
//
//   expect_close(actual, expected, kernel_tolerance(DType::kBF16), "y");
//
// A value passes when |actual - expected| <= absolute + relative * |expected|.
#pragma once

#include "core/dtype.h"

namespace farspan::testing {

struct Tolerance {
  double absolute;
  double relative;
};

// Nothing but the same bits.
inline constexpr Tolerance kExact{0, 0};

// One kernel against its double-precision reference on the same (rounded) inputs. bf16 has 8 bits
// of mantissa: one rounding is 2^-9; a sum that lands on the other side of a tie makes it 2^-8.
constexpr Tolerance kernel_tolerance(DType output) {
  switch (output) {
    case DType::kBF16:
      return {.absolute = 1e-6, .relative = 1.01 / 256};
    case DType::kF32:
      return {.absolute = 1e-6, .relative = 5e-7};
    default:
      return {.absolute = 1e-12, .relative = 1e-12};
  }
}

// A kernel whose outputs are sums of `terms` products of numbers around 1, in any order.
constexpr Tolerance sum_tolerance(DType output, double terms) {
  const Tolerance one = kernel_tolerance(output);
  return {.absolute = 1e-7 * terms + 2e-6, .relative = one.relative < 2e-6 ? 2e-6 : one.relative};
}

// An f64 sum of squares of f32 numbers.
inline constexpr Tolerance kNormTolerance{1e-13, 1e-12};

// Master weights in f32 after a hundred AdamW steps, against double.
inline constexpr Tolerance kOptimizerTolerance{2e-6, 5e-6};

// The mean loss per token, against double: two f32 logits' worth of rounding.
inline constexpr Tolerance kLossTolerance{1e-6, 1e-6};

// Central differences in double with a step of 1e-5.
inline constexpr Tolerance kGradcheckTolerance{1e-8, 1e-6};

}  // namespace farspan::testing
