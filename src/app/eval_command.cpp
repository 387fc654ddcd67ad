// farspan eval: what a trained model is worth, by length of context.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "app/command.h"
#include "app/eval_report.h"
#include "app/model_options.h"
#include "app/number_option.h"
#include "app/output_file.h"
#include "comm/agree.h"
#include "train/generate.h"
#include "train/long_scoring.h"

namespace farspan::app {
namespace {

struct CommonArguments {
  ModelArguments model;
  std::vector<std::string> lengths;
  std::string out;
  bool json = false;
  std::string command;  // as typed, for reports
};

struct RetrievalArguments : CommonArguments {
  std::vector<std::string> tasks;
  std::int64_t depths = 10, samples = 4, distractors = 0;
  std::uint64_t seed = 1;
  bool generate = false;
};

struct TextArguments : CommonArguments {
  std::string data, documents, tokens, stride, short_length = "256", short_stride;
  bool long_ppl = false;
};

[[noreturn]] void refuse(std::string option, std::string what, std::string fix) {
  throw Error(ExitCode::kUsage,
              {.what = std::move(what), .where = std::move(option), .fix = std::move(fix)});
}

std::vector<std::int64_t> lengths_of(const CommonArguments& args) {
  std::vector<std::int64_t> out;
  for (const std::string& text : args.lengths) out.push_back(token_count("--lengths", text, 2));
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
  return out;
}

// A table of positions ends somewhere; rotary positions do not, but beyond what was trained they
// are new to the model.
void check_lengths(const InferenceModel& model, const CommonArguments& args,
                   const std::vector<std::int64_t>& lengths, LongAttentionKind attention) {
  const config::Model& shape = model.config().model();
  const std::int64_t table = shape.max_position_embeddings();
  if (shape.position() == "learned" && table > 0 && lengths.back() > table)
    refuse("--lengths",
           fmt::format("{} tokens are more than the {} positions of the model's table "
                       "(model.max_position_embeddings)",
                       lengths.back(), table),
           "use shorter lengths, or a model with rope, alibi or xpos");
  const std::string note = beyond_training_note(model, lengths.back(), attention);
  if (!note.empty() && model.world().rank() == 0 && !args.model.quiet)
    fmt::print(stderr, "note: {}\n", note);
}

EvalOrigin origin_of(const InferenceModel& model, const CommonArguments& args) {
  return {.command = args.command,
          .checkpoint = model.checkpoint().string(),
          .step = model.step(),
          .overrides = args.model.overrides,
          .ranks = model.world().size(),
          .attention = args.model.attention,
          .trained_context = model.trained_context()};
}

// --attention, with what it needs checked before the work.
LongAttentionOptions attention_of(const InferenceModel& model, const CommonArguments& args) {
  const LongAttentionOptions out = long_attention_options(args.model, model);
  if (out.kind != LongAttentionKind::kNone)
    check_long_attention(model.config(), out, model.mesh().context_size());
  return out;
}

std::unique_ptr<ScoringModel> scoring_of(InferenceModel& model,
                                         const LongAttentionOptions& attention) {
  return attention.kind == LongAttentionKind::kNone ? scoring_model(model)
                                                    : long_scoring_model(model, attention);
}

template <typename Report>
void show(const Report& report, const CommonArguments& args) {
  if (args.json)
    fmt::print("{}\n", to_json(report).dump(2));
  else
    fmt::print("{}", to_text(report));
  std::fflush(stdout);
  if (args.out.empty()) return;
  write_report(report, args.out);
  if (!args.model.quiet) fmt::print(stderr, "wrote {}\n", args.out);
}

TaskGrid grid_of(const RetrievalArguments& args, const std::string& task,
                 const std::vector<std::int64_t>& lengths, const InferenceModel& model) {
  return {.task = parse_task(task),
          .lengths = lengths,
          .depths = args.depths,
          .samples = args.samples,
          .distractors = args.distractors,
          .seed = args.seed,
          .vocabulary = TaskVocabulary::of(model.tokenizer())};
}

void retrieval_on_rank(const RetrievalArguments& args, Communicator& world,
                       const RankEnvironment& rank) {
  InferenceModel model(args.model.model, args.model.overrides,
                       inference_options(args.model, rank, {"shorter --lengths"}), world);
  print_notes(model, args.model.quiet);
  RetrievalReport report{.origin = origin_of(model, args)};
  std::vector<TaskGrid> grids;
  GenerateOptions generation;
  together(world, [&] {
    generation.long_attention = attention_of(model, args);
    const std::vector<std::int64_t> lengths = lengths_of(args);
    check_lengths(model, args, lengths, generation.long_attention.kind);
    for (const std::string& task : args.tasks) {
      grids.push_back(grid_of(args, task, lengths, model));
      for (std::size_t l = 0; l < lengths.size(); ++l)  // impossible lengths are known before work
        grids.back().document(static_cast<std::int64_t>(l) * grids.back().per_length());
    }
  });
  report.generated = args.generate;
  report.origin.attention_context = generation.long_attention.context;
  const auto scoring = scoring_of(model, generation.long_attention);
  const bool lead = world.rank() == 0;
  for (const TaskGrid& grid : grids) {
    const auto progress = [&](std::int64_t done, std::int64_t all) {
      if (lead && !args.model.quiet)
        fmt::print(stderr, "{}: {} of {} documents\n", name_of(grid.task), done, all);
    };
    report.results.push_back(args.generate ? generate_retrieval(model, grid, generation, progress)
                                           : score_retrieval(*scoring, grid, progress));
  }
  together(world, [&] {
    if (lead) show(report, args);
  });
}

std::int64_t num_documents(const TokenStore& store, const ScoredSpan& span) {
  const auto offsets = store.doc_offsets();
  const auto at = [&](std::int64_t token) {
    return std::upper_bound(offsets.begin(), offsets.end(), static_cast<std::uint64_t>(token));
  };
  return at(span.first + span.tokens - 1) - at(span.first - 1) + 1;
}

struct TextPlan {
  std::vector<std::int64_t> lengths;
  std::int64_t stride = 0;  // 0: that of each length
  ScoredSpan span;
  Windows windows(std::int64_t length) const {
    return {.length = length,
            .stride = stride > 0 ? std::min(stride, length) : length,
            .first = span.first,
            .tokens = span.tokens};
  }
};

TextPlan plan_text(const TextArguments& args, const InferenceModel& model,
                   const EvaluationReader& reader, std::int64_t limit,
                   LongAttentionKind attention) {
  TextPlan plan{.lengths = lengths_of(args)};
  check_lengths(model, args, plan.lengths, attention);
  if (!args.stride.empty()) plan.stride = token_count("--stride", args.stride);
  if (plan.stride > plan.lengths.front())
    refuse("--stride",
           fmt::format("{} tokens are more than the shortest window {}", plan.stride,
                       plan.lengths.front()),
           "tokens between windows would not be scored: use at most the shortest of --lengths");
  plan.span = scored_span(reader, plan.lengths, plan.stride, limit);
  return plan;
}

void text_on_rank(const TextArguments& args, Communicator& world, const RankEnvironment& rank) {
  InferenceModel model(args.model.model, args.model.overrides,
                       inference_options(args.model, rank, {"shorter --lengths"}), world);
  print_notes(model, args.model.quiet);
  std::optional<EvaluationReader> reader;
  TextPlan plan;
  PerplexityReport report{.origin = origin_of(model, args)};
  Windows brief;
  LongAttentionOptions attention;
  const std::int64_t limit = args.tokens.empty() ? model.trained().evaluation().tokens()
                                                 : token_count("--tokens", args.tokens);
  together(world, [&] {
    reader.emplace(open_text(model, args.data, args.documents));
    attention = attention_of(model, args);
    plan = plan_text(args, model, *reader, limit, attention.kind);
    if (!args.long_ppl) return;
    brief = plan.windows(token_count("--short", args.short_length, 2));
    if (brief.length >= plan.lengths.front())
      refuse("--short",
             fmt::format("{} tokens are not shorter than {}", brief.length, plan.lengths.front()),
             "use a length below all of --lengths");
    brief.stride = args.short_stride.empty() ? std::max<std::int64_t>(1, brief.length / 4)
                                             : token_count("--short-stride", args.short_stride);
    if (brief.stride > brief.length)
      refuse("--short-stride", "is more than --short", "use at most that");
  });
  report.origin.attention_context = attention.context;
  report.data = reader->store().path().string();
  report.documents = reader->packing().documents == Documents::kJoined ? "joined" : "masked";
  report.num_documents = num_documents(reader->store(), plan.span);
  report.truncated = plan.span.tokens < limit;
  const bool lead = world.rank() == 0;
  const auto scoring = scoring_of(model, attention);
  for (const std::int64_t length : plan.lengths) {
    report.scores.push_back(score_windows(*scoring, *reader, plan.windows(length)));
    if (lead && !args.model.quiet) fmt::print(stderr, "windows of {}: done\n", length);
  }
  LongPplReport longppl;
  if (args.long_ppl) {
    const WindowScores with_short = score_windows(*scoring, *reader, brief);
    for (const WindowScores& scores : report.scores)
      longppl.results.push_back(long_perplexity(scores, with_short, longppl.rule));
    longppl.short_length = brief.length;
    longppl.short_stride = brief.stride;
  }
  together(world, [&] {
    if (!lead) return;
    if (!args.long_ppl) return show(report, args);
    longppl.text = std::move(report);
    show(longppl, args);
  });
}

std::string command_line(const Session& session) {
  std::string out;
  for (int i = 0; i < *session.argc; ++i)
    out += (i == 0 ? "" : " ") + std::string((*session.argv)[i]);
  return out;
}

template <typename Args, typename Body>
void start(Session& session, Args& args, Body body) {
  args.command = command_line(session);
  run_ranks(
      session, args.model.local_ranks,
      [&] {
        if (!args.out.empty())
          check_output_file("--out", args.out, {".json", ".csv", ".svg", ".png"});
        lengths_of(args);
      },
      [&](Communicator& world, const RankEnvironment& rank) { body(args, world, rank); });
}

void add_common(CLI::App& cmd, CommonArguments& args) {
  add_model_options(cmd, args.model);
  cmd.add_option("--lengths", args.lengths, "context lengths in tokens, such as 256,512,1k")
      ->required()
      ->delimiter(',')
      ->allow_extra_args(false);
  cmd.add_option("--out", args.out, "also write FILE.json, .csv, .svg or .png");
  cmd.add_flag("--json", args.json, "print one JSON object instead of a table");
  cmd.footer("docs/evaluation.md says what the numbers mean.");
}

void add_retrieval(CLI::App& eval, Session& session, const std::string& name,
                   const std::string& what) {
  auto args = std::make_shared<RetrievalArguments>();
  CLI::App* cmd = eval.add_subcommand(name, what);
  add_common(*cmd, *args);
  cmd->add_option("--depths", args->depths,
                  "places of the needle, from the text's start to its end")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1000}))
      ->capture_default_str();
  cmd->add_option("--samples", args->samples, "documents for each length and depth")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1'000'000}))
      ->capture_default_str();
  cmd->add_option("--seed", args->seed, "of the documents")
      ->check(whole_number())
      ->capture_default_str();
  cmd->add_flag("--generate", args->generate,
                "score what the model writes, greedily, instead of one teacher-forced pass");
  if (name == "passkey")
    cmd->add_option("--distractors", args->distractors, "other keys in the text")
        ->check(CLI::Range(std::int64_t{0}, std::int64_t{10'000}))
        ->capture_default_str();
  if (name == "ruler") {
    for (const TaskKind task : ruler_tasks()) args->tasks.emplace_back(name_of(task));
    cmd->add_option("--tasks", args->tasks,
                    "of multikey, multivalue, multiquery, vt, cwe, fwe (default: all)")
        ->delimiter(',')
        ->allow_extra_args(false);
  } else {
    args->tasks = {name};
  }
  cmd->callback([args, &session] { start(session, *args, retrieval_on_rank); });
}

void add_text(CLI::App& eval, Session& session, bool long_ppl) {
  auto args = std::make_shared<TextArguments>();
  args->long_ppl = long_ppl;
  CLI::App* cmd =
      long_ppl ? eval.add_subcommand("longppl", "perplexity of the tokens that need a long context")
               : eval.add_subcommand("perplexity", "perplexity of a text against context length");
  add_common(*cmd, *args);
  cmd->add_option("--data", args->data, "token store (default: data.validation of the run)");
  cmd->add_option("--documents", args->documents,
                  "masked: a context ends at the start of its document; joined: it goes on, and so "
                  "do positions (default: as the run reads documents)")
      ->check(CLI::IsMember({"masked", "joined"}));
  cmd->add_option("--stride", args->stride,
                  "tokens between windows, of which only those are scored (default: the length, "
                  "disjoint windows)");
  cmd->add_option("--tokens", args->tokens,
                  "tokens to score, in whole windows (default: evaluation.tokens of the run)");
  if (long_ppl) {
    cmd->add_option("--short", args->short_length, "tokens of the short context")
        ->capture_default_str();
    cmd->add_option("--short-stride", args->short_stride,
                    "tokens between short windows (default: a quarter of --short)");
  }
  cmd->callback([args, &session] { start(session, *args, text_on_rank); });
}

}  // namespace

void add_eval_command(CLI::App& app, Session& session) {
  CLI::App* eval = app.add_subcommand(
      "eval", "score a trained model: alone, with --local-ranks N, or under mpirun -np P");
  eval->require_subcommand(1);
  add_text(*eval, session, false);
  add_retrieval(*eval, session, "passkey", "find a key hidden in filler, by length and depth");
  add_retrieval(*eval, session, "kv", "look up one of many pairs, by length and depth");
  add_retrieval(*eval, session, "ruler", "tasks of RULER that need no other data");
  add_text(*eval, session, true);
  eval->add_subcommand("score", "not built yet: scores of each token of a store")
      ->allow_extras()
      ->callback([] {
        refuse("farspan eval score", "is not built yet",
               "farspan eval perplexity scores a store in windows");
      });
}

}  // namespace farspan::app
