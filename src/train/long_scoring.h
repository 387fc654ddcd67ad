// Scores with attention that reaches beyond the trained context (parallel/long_attention.h). A
// document that is longer than the context is read in chunks over kept keys, so that what a pass
// takes beside the keys does not grow with it; with LM-Infinite the keys do not grow either.
//
//   auto model = long_scoring_model(inference_model, {.kind = LongAttentionKind::kDualChunk,
//                                                     .context = 2048});
//   score_nll(*model, rows, visit);
//
// Each document is on one rank; data-parallel ranks have documents of their own.
#pragma once

#include <memory>

#include "train/cached_model.h"
#include "train/scoring.h"

namespace farspan {

// `chunk`: most tokens of a pass over a long document. Throws Error(kUsage) for what
// check_long_attention refuses; the result's check() Error(kBadData) for positions that do not
// count a document's tokens one by one. `model` must outlive the result.
std::unique_ptr<ScoringModel> long_scoring_model(InferenceModel& model,
                                                 const LongAttentionOptions& attention,
                                                 std::int64_t chunk = 2048);

}  // namespace farspan
