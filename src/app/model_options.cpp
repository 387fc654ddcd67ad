#include "app/model_options.h"

#include <fmt/format.h>

#include <algorithm>

#include "app/number_option.h"
#include "config/quantity.h"
#include "data/loader.h"
#include "train/cached_model.h"

namespace farspan::app {

void add_model_options(CLI::App& cmd, ModelArguments& args) {
  cmd.add_option("--model", args.model,
                 "a run's folder (its newest checkpoint that verifies), or a checkpoint")
      ->required();
  cmd.add_option("overrides", args.overrides, "section.key=value ...: " + inference_keys());
  cmd.add_option("--attention", args.attention,
                 "model: as it was trained; lm_infinite or dca (Dual Chunk Attention): reads "
                 "further than that, without training")
      ->check(CLI::IsMember({"model", "lm_infinite", "dca"}));
  cmd.add_option("--attention-context", args.attention_context,
                 "lm_infinite, dca: tokens whose distances the model knows (default: the context "
                 "that it was trained for)");
  cmd.add_option("--local-ranks", args.local_ranks,
                 "run N ranks as threads of this process, without MPI")
      ->check(whole_number(1, kMostInt));
  cmd.add_option("--threads", args.threads,
                 "CPU threads of each rank (default: OMP_NUM_THREADS, or its share of the cores)")
      ->check(whole_number(1, kMostInt));
  cmd.add_flag("--quiet", args.quiet, "no notes on standard error");
}

InferenceOptions inference_options(const ModelArguments& args, const RankEnvironment& rank,
                                   std::vector<std::string> smaller) {
  if (args.attention == "dca") smaller.emplace_back("--attention lm_infinite");
  if (args.attention == "lm_infinite") smaller.emplace_back("a lower --attention-context");
  return {.threads = args.threads > 0 ? args.threads : rank.threads_per_rank,
          .ranks_on_machine = rank.local_size,
          .local_rank = rank.local_rank,
          .host_id = rank.host_id,
          .quiet = args.quiet,
          .smaller = std::move(smaller),
          .ranks_share = args.attention == "model"};
}

LongAttentionOptions long_attention_options(const ModelArguments& args,
                                            const InferenceModel& model) {
  LongAttentionOptions out;
  if (args.attention == "model") {
    if (!args.attention_context.empty())
      throw Error(ExitCode::kUsage,
                  {.what = "--attention-context is read by --attention lm_infinite and dca",
                   .where = "command line",
                   .fix = "leave it out, or name one of the two"});
    return out;
  }
  out.kind =
      args.attention == "dca" ? LongAttentionKind::kDualChunk : LongAttentionKind::kLmInfinite;
  out.context = args.attention_context.empty()
                    ? model.trained_context()
                    : token_count("--attention-context", args.attention_context, 2);
  const std::int64_t known =
      std::max(model.trained_context(), model.config().model().rope().scaling().target_context());
  if (out.context > known && !args.quiet && model.world().rank() == 0)
    fmt::print(stderr,
               "note: --attention-context {} is more than the {} tokens that the model knows: "
               "distances beyond those are new to it\n",
               out.context, known);
  return out;
}

std::int64_t token_count(const std::string& option, const std::string& text, std::int64_t least) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  const Reading<Int128> reading = read_integer(text, config::LENGTH);
  if (reading.ok && reading.value >= least && reading.value <= kMost)
    return static_cast<std::int64_t>(reading.value);
  throw Error(
      ExitCode::kUsage,
      {.what = reading.ok
                   ? fmt::format("'{}' is not a number of tokens from {} to {}", text, least, kMost)
                   : fmt::format("'{}' {}", text, reading.what),
       .where = option,
       .fix = reading.fix.empty() ? "write a whole number such as 200 or 4k" : reading.fix});
}

std::string beyond_training_note(const InferenceModel& model, std::int64_t tokens,
                                 LongAttentionKind attention) {
  const std::int64_t trained = model.trained_context();
  const config::Model& shape = model.config().model();
  const bool stretched = shape.rope().scaling().target_context() >= tokens;
  const bool extends = shape.position() == "alibi" || shape.position() == "xpos";
  if (tokens <= trained || attention != LongAttentionKind::kNone || stretched || extends) return {};
  const bool rotates = shape.position() == "rope";
  const std::string further =
      !rotates
          ? fmt::format("and with model.position: {} only training goes further", shape.position())
      : takes_long_attention(shape)
          ? "--attention lm_infinite or dca, or model.rope.scaling (docs/positions.md), go further"
          : "model.rope.scaling (docs/positions.md) goes further";
  return fmt::format(
      "the text reaches {} tokens, and the model was trained for {}: what lies beyond that is new "
      "to "
      "it; {}",
      tokens, trained, further);
}

EvaluationReader open_text(const InferenceModel& model, const std::string& data,
                           const std::string& documents) {
  config::RunConfig config = model.config();
  const std::string path = data.empty() ? model.trained().data().validation() : data;
  if (path.empty())
    throw Error(ExitCode::kUsage, {.what = "the run names no held-out text (data.validation)",
                                   .where = "--data",
                                   .fix = "name a token store: --data STORE.h5"});
  config.mutable_data()->set_validation(path);
  if (!documents.empty()) config.mutable_data()->set_documents(documents);
  // Across borders distances would go back to small ones, or below 0.
  if (documents == "joined") config.mutable_positions()->set_reset_per_document(false);
  return *open_validation_data(config, TokenStore::Verify::kHash);
}

void print_notes(const InferenceModel& model, bool quiet) {
  if (quiet || model.world().rank() != 0) return;
  for (const Issue& note : model.notes()) fmt::print(stderr, "note: {}\n", to_text(note));
}

}  // namespace farspan::app
