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
//               Where the document is cut from a longer text of |x| tokens (source_window.h), chunk
//               i also skips v_i tokens of it: v_i ~ U{v_(i-1), .., |x| - n}, v_0 = 0.
//   cream       head, middle and tail (CREAM, Wu et al. 2024, section 3.2, and its published code):
//                 head = tail = n / 3 or 4s tokens, by a coin, s = L_t / L_c; 4s is taken as n / 3
//                 where it is more;  alpha = floor(x), x normal(1 + s, 3) truncated to [2, 2s]
//                 end ~ U{head + (middle - 1) f, .., f n - tail - 1},  f = alpha / 2
//                 positions 0 .. head - 1, then the middle up to end, then L_t - tail .. L_t - 1
//               In documents of n < L_c tokens f runs from 1 to L_t / n as alpha from 2 to 2s.
//   randomized  a sorted sample without replacement from [0, L_t)  (Ruoss et al. 2023, section 3)
#pragma once

#include <cstdint>
#include <vector>

namespace farspan {

enum class PositionSampler : std::uint8_t { kSequential, kPose, kCream, kRandomized };

// How far the text that chunks are cut from is skipped before each: v_i above, drawn for itself; as
// far as positions jump, as far as the text reaches (v_i = min(u_i, |x| - n)); or not at all.
enum class ContentOffset : std::uint8_t { kUniform, kSame, kZero };

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
  // Of pose: tokens of the stream that a sample is cut from; 0: no more than it has.
  std::int64_t source_window = 0;
  ContentOffset content_offset = ContentOffset::kUniform;

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

// Tokens begin .. begin + count - 1 of a text.
struct TextRun {
  std::int64_t begin = 0, count = 0;
  friend bool operator==(const TextRun&, const TextRun&) = default;
};

// Of pose: which `tokens` tokens of a text of `source` >= tokens the document consists of, in
// order; runs neither touch nor overlap. Goes with draw_positions of the same key and tokens.
// CHECKs as it.
std::vector<TextRun> draw_text(const PositionOptions& options, const PositionKey& key,
                               std::int64_t tokens, std::int64_t source);

}  // namespace farspan
