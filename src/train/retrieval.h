// Retrieval tasks scored: of the documents of a grid (data/task_grid.h), in how many does the model
// find the answer?
//
//   auto model = scoring_model(inference_model);
//   RetrievalResult r = score_retrieval(*model, {.lengths = {1024}, .depths = 10, .samples = 4});
//   r.of_length(0).accuracy()
//
// One teacher-forced pass reads a document: a token of the answer counts when it is the likeliest
// one (of equals the lowest id) after all tokens before it, the right answer's included; a document
// counts when all of its answer's tokens do. Since a greedy generator repeats the right answer as
// long as it is right, that is whether it would have written exactly this answer.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "data/task_grid.h"
#include "train/generate.h"
#include "train/scoring.h"

namespace farspan {

// Counts over documents.
struct RetrievalCell {
  std::int64_t documents = 0, right = 0;
  std::int64_t items = 0, items_right = 0;    // parts of answers (TaskDocument::items)
  std::int64_t tokens = 0, tokens_right = 0;  // of answers
  double nll_sum = 0;                         // nats over the answers' tokens

  double accuracy() const { return ratio(right, documents); }
  double item_accuracy() const { return ratio(items_right, items); }
  double nll() const { return tokens == 0 ? 0 : nll_sum / static_cast<double>(tokens); }
  RetrievalCell& operator+=(const RetrievalCell& other);

 private:
  static double ratio(std::int64_t a, std::int64_t b) {
    return b == 0 ? 0 : static_cast<double>(a) / static_cast<double>(b);
  }
};

struct RetrievalResult {
  TaskGrid grid;
  std::vector<RetrievalCell> cells;  // length by length, depth by depth

  const RetrievalCell& cell(std::size_t length, std::int64_t depth) const {
    return cells[length * static_cast<std::size_t>(grid.num_depths()) +
                 static_cast<std::size_t>(depth)];
  }
  RetrievalCell of_length(std::size_t length) const;
};

// Called on every rank with the documents done.
using RetrievalProgress = std::function<void(std::int64_t done, std::int64_t all)>;

// Collective over all ranks; the result is the same on each. Throws Error(kUsage) for a length that
// the task cannot have.
RetrievalResult score_retrieval(ScoringModel& model, const TaskGrid& grid,
                                const RetrievalProgress& progress = {});

// The same by generation: the model writes as many tokens as the answer has, greedily. A document
// counts when they are the answer; an item when its text stands anywhere in them, as RULER counts.
// Tokens and their nll are not counted. One document after the other; collective.
RetrievalResult generate_retrieval(InferenceModel& model, const TaskGrid& grid,
                                   const GenerateOptions& options,
                                   const RetrievalProgress& progress = {});

// The share of passkeys found at this length, over `depths` places with `samples` texts each: what
// a gated curriculum asks of the model that it trains. Collective.
double passkey_accuracy(ScoringModel& model, const TaskVocabulary& vocabulary, std::int64_t length,
                        std::int64_t depths, std::int64_t samples, std::uint64_t seed);

}  // namespace farspan
