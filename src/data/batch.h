// Tokens as the trainer reads them. A token carries three numbers that are never inferred from one
// another: its index (slot in the global sequence; causality), its position (any integer; position
// encoding) and its segment (document; isolation).
#pragma once

#include <cstdint>
#include <vector>

namespace farspan {

// `sequences` rows of `sequence_length` tokens, concatenated. The index of token t is t. Labels are
// already shifted: labels[t] is the token to predict after tokens[t], or -100 where none is scored.
// Segments are distinct between sequences.
struct Batch {
  std::int64_t sequences = 0;
  std::int64_t sequence_length = 0;
  std::vector<std::int32_t> tokens;     // (sequences * sequence_length)
  std::vector<std::int32_t> labels;     // same size; -100 = not scored
  std::vector<std::int32_t> positions;  // same size
  std::vector<std::int32_t> segments;   // same size; equal = same document; ascending
  std::int64_t num_tokens() const { return sequences * sequence_length; }
};

}  // namespace farspan
