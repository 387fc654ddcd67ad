// A few seconds of the kernels at work: does this build compute what it should here, and how fast?
#pragma once

#include "kernels/backend.h"

namespace farspan::app {

struct SelfCheck {
  double matmul_error = 0;     // largest |f32 - double reference| / largest |reference|
  double attention_error = 0;  // the same, causal attention forward with grouped heads
  double f32_gflops = 0;       // matmul of kRateSize cubed
  double bf16_gflops = 0;
  bool passed() const { return matmul_error < kTolerance && attention_error < kTolerance; }

  static constexpr int kRateSize = 1024;
  static constexpr double kTolerance = 2e-5;  // f32 sums of about 100 terms
};

// Runs on a CPU backend.
SelfCheck self_check(Backend& backend);

}  // namespace farspan::app
