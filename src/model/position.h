// Position schemes resolve to plain tables, once, in double: a new scheme touches no kernel.
//
//   rope    queries and keys are rotated               (RoFormer, Su et al. 2021, eq. 15; rotary.h)
//   xpos    rotated, and scores decay with distance    (Sun et al. 2022, eq. 13-16)
//   alibi   nothing is rotated; a slope for each head  (Press et al. 2021, section 3)
//   sinusoidal  nothing is rotated; embeddings get sin and cos of the position
//               (Vaswani et al. 2017, section 3.5)
//   learned     nothing is rotated; embeddings get a row of a table of weights
//   none    no positions at all
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "config/run_config.pb.h"
#include "model/rotary.h"

namespace farspan {

struct PositionTable {
  std::vector<double> inv_freq;  // (head_dim / 2): scaled (rotary.h); empty when nothing is rotated
  double attention_scale = 1.0;  // multiplies cos and sin
  std::vector<double> slopes;    // (num_attention_heads): ALiBi's m_h; else empty
  std::vector<double> decay;     // (head_dim / 2): xPos's log2(zeta_c) / scale_base; else empty
  // (hidden_size / 2): omega_j = 10000^(-2j / hidden_size); embedding dimension j gets sin(p
  // omega_j) and j + hidden_size / 2 cos(p omega_j) (the paper's pairs, halves apart); else empty.
  std::vector<double> sinusoid;
};

// From model.position, model.rope and model.xpos_scale_base. `document_length`: of the document
// that the table is for (largest position + 1; of a generation the prompt and all that may follow),
// read where depends_on_length says so; 0: one within original_context.
PositionTable make_position_table(const config::Model& model, std::int64_t document_length = 0);

// What rotary_table() of a model's queries and keys depends on; nothing where nothing is rotated.
std::optional<RotaryArgs> rotary_args(const config::Model& model);

// The rotary args of a model whose tables depend on the documents' lengths; nothing for others.
std::optional<RotaryArgs> length_dependent_rotary(const config::Model& model);

// Whether this layer's rotations are those of model.rope.scaling; where not (scaling.layers), they
// are those of model.rope.theta alone, whatever the document's length.
bool layer_is_scaled(const config::Model& model, std::int64_t layer);

// What such a layer rotates by; empty where nothing is rotated.
RotaryTable unscaled_rotary(const config::Model& model);

// m_h = 2^(-8 h / H), h = 1..H, for H a power of two; otherwise, with n the largest power of two
// below H, the n slopes of n heads followed by the 1st, 3rd, 5th ... of 2n heads.
std::vector<double> alibi_slopes(std::int64_t num_heads);

}  // namespace farspan
