// Position schemes resolve to plain tables, once, in double: a new scheme touches no kernel.
#pragma once

#include <cstdint>
#include <vector>

#include "config/run_config.pb.h"

namespace farspan {

struct PositionTable {
  std::vector<double> inv_freq;  // (head_dim / 2): theta^(-2j/d); empty when nothing is rotated
  double attention_scale = 1.0;  // multiplies cos and sin
};

// From model.position and model.rope (RoFormer, Su et al. 2021, eq. 15). Throws Error(kUsage) for a
// scheme that is not built.
PositionTable make_position_table(const config::Model& model);

}  // namespace farspan
