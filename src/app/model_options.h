// Options that commands which read a model share: which one, how many ranks, and how far attention
// reaches.
//
//   ModelArguments args;
//   add_model_options(*cmd, args);
//   run_ranks(session, args.local_ranks, [&](Communicator& world, const RankEnvironment& rank) {
//     InferenceModel model(args.model, args.overrides, inference_options(args, rank, {}), world);
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "app/ranks.h"
#include "data/sampler.h"
#include "train/inference_model.h"

namespace farspan::app {

struct ModelArguments {
  std::string model;
  std::vector<std::string> overrides;
  int local_ranks = 0;
  int threads = 0;  // of a rank; 0: its share of the cores
  bool quiet = false;
  std::string attention = "model";  // model, lm_infinite, dca
  std::string attention_context;    // "": what the model was trained for
};

// --model, --local-ranks, --threads, --quiet, --attention, --attention-context and key=value.
void add_model_options(CLI::App& cmd, ModelArguments& args);

// `smaller`: what makes the command's passes smaller, such as "a shorter prompt".
InferenceOptions inference_options(const ModelArguments& args, const RankEnvironment& rank,
                                   std::vector<std::string> smaller);

// What --attention asks for. Rank 0 notes a context that is longer than the model knows. Throws
// Error(kUsage).
LongAttentionOptions long_attention_options(const ModelArguments& args,
                                            const InferenceModel& model);

// The number of tokens that `text` gives ("4k", "1M": binary), at least `least`. Throws
// Error(kUsage) naming the option.
std::int64_t token_count(const std::string& option, const std::string& text,
                         std::int64_t least = 1);

// Rank 0 says how a text of `tokens` tokens stands to what the model was trained for, where that
// matters; "" where it does not.
std::string beyond_training_note(const InferenceModel& model, std::int64_t tokens,
                                 LongAttentionKind attention);

// Held-out text: the store `data`, or where that is "" data.validation of the run; documents masked
// or joined, "" as the run reads them. Throws Error(kUsage) where there is no text,
// Error(kBadData).
EvaluationReader open_text(const InferenceModel& model, const std::string& data,
                           const std::string& documents);

// Rank 0's notes about the configuration, unless quiet.
void print_notes(const InferenceModel& model, bool quiet);

}  // namespace farspan::app
