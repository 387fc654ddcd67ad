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
//   dynamic  theta becomes theta * (s len / L - (s - 1))^(d/(d-2)) in documents of len > L tokens
//                                                           (emozilla 2023; transformers)
//   longrope omega_j / short_factor[j] in documents of at most L tokens, omega_j / long_factor[j]
//   in
//            longer ones; cos and sin times sqrt(1 + ln s / ln L)
//            (LongRoPE, Ding et al. 2024, section 3; transformers)
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

// Whether a document's table depends on its length: the largest position of its tokens plus 1, of
// the whole document, before it is cut over ranks or chunks.
bool depends_on_length(const config::RopeScaling& scaling);

struct RotaryArgs {
  double theta = 10000;
  std::int64_t head_dim = 0;      // even
  config::RopeScaling scaling{};  // resolved: factor and original_context are there where read
  // Of a document, tokens; read by dynamic and longrope. 0: one within original_context.
  std::int64_t document_length = 0;
};

RotaryTable rotary_table(const RotaryArgs& args);

// The tables of a scaling that depends on the document's length, for batches of documents.
//
//   RotaryTables tables = rotary_tables(args, {900, 900, 70000});   // one per document
//   document i reads row tables.ids[i] of inv_freq
struct RotaryTables {
  std::vector<double> inv_freq;  // (K, head_dim / 2), each length's once; row 0: within L
  std::vector<std::int32_t> ids;
};
RotaryTables rotary_tables(RotaryArgs args, const std::vector<std::int64_t>& document_lengths);

// YaRN's d ln(L / (2 pi r)) / (2 ln theta): the pair, as a fraction, that turns r times within L
// tokens (eq. 14 there, solved for the dimension).
double yarn_dimension(double rotations, std::int64_t head_dim, double theta,
                      std::int64_t original_context);

}  // namespace farspan
