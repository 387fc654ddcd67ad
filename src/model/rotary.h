// The rotary family: from a base and a scaling to the frequencies by which queries and keys are
// rotated. Pure functions, in double.
//
//   RotaryTable t = rotary_table({.theta = 5e5, .head_dim = 128, .scaling =
//   config.rope().scaling()}); angle of dimension pair j at position p: p * t.inv_freq[j]; cos and
//   sin times t.attention_scale
//
// With d = head_dim, omega_j = theta^(-2j/d), s = factor, L = original_context:
//   linear   omega / s                                                (PI, Chen et al. 2023, eq. 3)
//   ntk      theta becomes theta * s^(d/(d-2))              (bloc97 2023; YaRN, section 3.1)
//   yarn     between omega / s where a pair turns less than beta_slow times within L, and omega
//   where
//            it turns more than beta_fast times             (YaRN, Peng et al. 2023,
//            sections 3.2-3.4)
//   llama3   between omega / s for wavelengths above L / low_freq_factor, and omega for those below
//            L / high_freq_factor                           (Llama 3, 2407.21783; transformers)
#pragma once

#include <cstdint>
#include <vector>

#include "config/run_config.pb.h"

namespace farspan {

struct RotaryTable {
  std::vector<double> inv_freq;  // (head_dim / 2)
  double attention_scale = 1.0;
};

struct RotaryArgs {
  double theta = 10000;
  std::int64_t head_dim = 0;      // even
  config::RopeScaling scaling{};  // resolved: factor and original_context are there where read
};

// Throws Error(kUsage) for a scaling that is not built.
RotaryTable rotary_table(const RotaryArgs& args);

// YaRN's d ln(L / (2 pi r)) / (2 ln theta): the pair, as a fraction, that turns r times within L
// tokens (eq. 14 there, solved for the dimension).
double yarn_dimension(double rotations, std::int64_t head_dim, double theta,
                      std::int64_t original_context);

}  // namespace farspan
