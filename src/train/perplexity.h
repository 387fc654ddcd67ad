// Perplexity against context length: the same tokens of one text scored in windows of each length.
//
//   ScoredText text = score_windows(*model, reader, {.length = 1024, .stride = 256,
//                                                    .first = 1024, .tokens = 65536});
//   text.mean(), text.perplexity()
//
// A window of `length` tokens scores the last `stride` of what follows its tokens; the next window
// begins `stride` tokens later. With stride = length windows are disjoint and a token's context is
// what lies before it in its window; with less, each token sees at least length - stride tokens
// before it, as far as its document and the text reach (Press et al. 2021, "Train short, test
// long", section B: sliding window evaluation).
#pragma once

#include <cstdint>
#include <vector>

#include "data/sampler.h"
#include "train/scoring.h"

namespace farspan {

struct Windows {
  std::int64_t length = 0;  // tokens of context, the one that predicts included
  std::int64_t stride = 0;  // 1 .. length
  std::int64_t first = 1;   // place in the store of the first token that is scored, >= 1
  std::int64_t tokens = 0;  // places that are scored, in a row
};

// What was scored, token by token. Tokens that begin a document where documents are masked, and
// those whose label is not scored, are not there.
struct WindowScores {
  Windows windows;
  std::vector<double> nll;            // (tokens) nats; NaN where not scored
  std::vector<std::int64_t> context;  // (tokens) tokens before it that the model could see
  std::int64_t scored() const;
  double mean() const;  // nats per token
  double perplexity() const;
};

// Collective over all ranks; the same on each. `reader` as open_validation_data gives it.
WindowScores score_windows(ScoringModel& model, const EvaluationReader& reader,
                           const Windows& windows);

// Where the scored tokens of several lengths can begin and how many there can be: the same for all,
// so that lengths are comparable. With stride < length they begin where the longest window is full.
struct ScoredSpan {
  std::int64_t first = 1, tokens = 0;
};
// `limit`: about so many tokens, 0: all. Disjoint windows (stride 0) are whole: as many of the
// longest as hold `limit` tokens, or as the text has; otherwise the name of a length would promise
// contexts that no token has. Throws Error(kBadData) where the text is shorter than the longest
// window.
ScoredSpan scored_span(const EvaluationReader& reader, std::span<const std::int64_t> lengths,
                       std::int64_t stride, std::int64_t limit);

// Means by the context that tokens had: [0, 16), [16, 32), [32, 64), ... up to the longest.
struct ContextBucket {
  std::int64_t begin = 0, end = 0;  // tokens of context
  std::int64_t tokens = 0;
  double nll_sum = 0;
  double mean() const { return nll_sum / static_cast<double>(tokens); }
};
std::vector<ContextBucket> by_context(const WindowScores& scores);

// LongPPL (Fang et al. 2024, arXiv 2410.23771, eq. 2 and 4-6). With log-probabilities l_i of token
// i given its long context and s_i given the last `short` tokens only, token i is a key token iff
//   LSD_i = l_i - s_i > alpha   and   LCL_i = l_i > beta,      alpha = 2, beta = -2
// (here l_i = -long nll), and
//   LongPPL = exp(-(1 / K) * sum over the K key tokens of l_i).
// Key tokens come from one model and may be averaged for another.
struct LongPerplexity {
  std::int64_t tokens = 0;  // scored with both contexts
  std::int64_t key_tokens = 0;
  double key_nll = 0;  // mean over key tokens, nats; NaN where there are none
  double all_nll = 0;  // mean over all tokens, with the long context
  double long_perplexity() const;
};
struct KeyTokenRule {
  double alpha = 2, beta = -2;
};
// The same tokens, scored with long and with short windows.
LongPerplexity long_perplexity(const WindowScores& with_long, const WindowScores& with_short,
                               const KeyTokenRule& rule = {});

}  // namespace farspan
