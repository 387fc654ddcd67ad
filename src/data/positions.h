// Which positions the tokens of one training document get. Causality reads a token's index and
// isolation its segment, so positions are free: jumps in them are data, not kernels.
//
//   PositionOptions o{.sampler = PositionSampler::kPose, .original_context = 2048,
//                     .target_context = 16384};
//   for (const PositionRun& r : draw_positions(o, {.seed = 1, .sample = i, .document = 0}, n)) ...
//
// A draw is a pure function of its arguments (core/rng.h): the same under any number of ranks, any
// resume and any depth of prefetch.
//
//   sequential  0, 1, 2, ...
//   pose        skip-wise (PoSE, Zhu et al. 2023, section 3): the n tokens are cut into chunks, and
//               before each but the first positions jump. With two chunks the published code's
//               draw:
//                 l0 ~ U{1, .., cap}, cap = (n + 1) / 2;  u ~ U{0, .., L_t - n};
//                 positions 0 .. l0 - 1, then u + l0 .. u + n - 1
//               With more, l0 as above, the other borders uniform without repetition, and
//                 u_i ~ U{u_(i-1), .., L_t - n}: chunk i moves by u_i.
//   randomized  a sorted sample without replacement from [0, L_t)  (Ruoss et al. 2023, section 3)
#pragma once

#include <cstdint>
#include <vector>

namespace farspan {

enum class PositionSampler : std::uint8_t { kSequential, kPose, kRandomized };

struct PositionOptions {
  PositionSampler sampler = PositionSampler::kSequential;
  std::int64_t original_context = 0;  // L_c, tokens: most that a document may have
  std::int64_t target_context = 0;    // L_t: positions stay below it (see target_margin)
  std::int64_t chunks = 2;            // of pose, >= 2; a document of fewer tokens has one each
  // The longest first chunk: half of the tokens, as in PoSE's code, or all but one per later chunk,
  // as in its text.
  bool first_chunk_full = false;
  // Jumps as if the target were L_t + L_c: far distances, which otherwise become rare over the last
  // L_c, are then seen as often as the others. Positions reach L_t + L_c - 1.
  bool target_margin = false;

  // One more than the largest position that can be drawn for documents of `tokens` tokens.
  std::int64_t end(std::int64_t tokens) const;
};

// Whose positions: sample numbers count through all epochs.
struct PositionKey {
  std::uint64_t seed = 0;
  std::uint64_t sample = 0;    // global number of the sample
  std::uint64_t document = 0;  // its place among the sample's documents
};

// Tokens with consecutive positions, first, first + 1, ...
struct PositionRun {
  std::int64_t first = 0, count = 0;
  friend bool operator==(const PositionRun&, const PositionRun&) = default;
};

// Of the document's `tokens` tokens in order; ascending. CHECKs tokens <= original_context and
// original_context <= target_context where the sampler reads them.
std::vector<PositionRun> draw_positions(const PositionOptions& options, const PositionKey& key,
                                        std::int64_t tokens);

}  // namespace farspan
