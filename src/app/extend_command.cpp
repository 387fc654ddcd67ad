// farspan extend search: rotary factors by which a model reads a longer context without tuning.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "app/command.h"
#include "app/model_options.h"
#include "app/number_option.h"
#include "app/output_file.h"
#include "comm/agree.h"
#include "io/checkpoint.h"
#include "io/content_hash.h"
#include "train/factor_search.h"
#include "train/long_samples.h"
#include "train/search_progress.h"

namespace farspan::app {
namespace {

using Json = SearchProgress::Json;

struct SearchArguments {
  ModelArguments model;
  std::string data, documents, out, target, original, scored;
  std::int64_t samples = 5;
  SearchOptions search;
  bool json = false;
};

[[noreturn]] void refuse(std::string option, std::string what, std::string fix) {
  throw Error(ExitCode::kUsage,
              {.what = std::move(what), .where = std::move(option), .fix = std::move(fix)});
}

std::string progress_path(const std::string& out) {
  return out.substr(0, out.rfind('.')) + ".progress.jsonl";
}

// What needs no model.
void check(const SearchArguments& args) {
  token_count("--target-context", args.target, 2);
  if (!args.original.empty()) token_count("--original-context", args.original, 2);
  if (!args.scored.empty()) token_count("--tokens", args.scored);
  check_output_file("--out", args.out, {".yaml", ".yml"});
  check_output_file("--out", progress_path(args.out));
  if (args.model.attention != "model" || !args.model.attention_context.empty())
    refuse("--attention", "keeps to distances that the model knows: no factors are read beyond",
           "leave it out");
}

// What is searched, and on which text.
struct Task {
  SearchSpace space;
  std::optional<EvaluationReader> reader;
  std::vector<EvaluationReader::Window> samples;
  std::int64_t scored = 0;  // of each sample
  std::int64_t length() const { return space.target_context; }
};

// Factors would replace a scaling, and stretch what was stretched in training.
void refuse_scaling(const InferenceModel& model) {
  const std::string& trained = model.trained().model().rope().scaling().type();
  const std::string& now = model.config().model().rope().scaling().type();
  if (now == "none") return;
  if (trained == "none")
    refuse("model.rope.scaling",
           fmt::format("an override scales rotations by {}, which factors would replace", now),
           "leave it out");
  refuse("--model",
         fmt::format("the weights were trained with rotary scaling {}, which factors would replace",
                     trained),
         "search from weights trained without; to do it all the same, add "
         "'model.rope.scaling={type: none}' and --original-context");
}

SearchSpace space_of(const SearchArguments& args, const InferenceModel& model) {
  const config::Model& shape = model.config().model();
  if (shape.position() != "rope")
    refuse("--model",
           fmt::format("model.position is {}, and factors divide frequencies of rope",
                       shape.position()),
           "use a model with position: rope");
  refuse_scaling(model);
  if (shape.head_dim() < 4)
    refuse("--model", fmt::format("head_dim {} has one pair to scale", shape.head_dim()),
           "use a model with a head_dim of 4 or more");
  SearchSpace space{.theta = shape.rope().theta(),
                    .head_dim = shape.head_dim(),
                    .original_context = args.original.empty()
                                            ? model.trained_context()
                                            : token_count("--original-context", args.original, 2),
                    .target_context = token_count("--target-context", args.target, 2)};
  if (space.target_context <= space.original_context)
    refuse("--target-context",
           fmt::format("{} tokens are not above the original context {}", space.target_context,
                       space.original_context),
           "use a longer target (--original-context says what the weights were trained for)");
  return space;
}

Task plan(const SearchArguments& args, const InferenceModel& model) {
  Task task{.space = space_of(args, model), .reader = {}, .samples = {}};
  task.scored = args.scored.empty() ? task.length() : token_count("--tokens", args.scored);
  if (task.scored > task.length())
    refuse("--tokens",
           fmt::format("{} tokens are more than --target-context {}", task.scored, task.length()),
           "use at most that, or leave it out to score all");
  task.reader.emplace(open_text(model, args.data, args.documents));
  task.samples = draw_long_samples(*task.reader, {.length = task.length(),
                                                  .count = args.samples,
                                                  .scored = task.scored,
                                                  .seed = args.search.seed});
  return task;
}

// How ranks share the work changes nothing that is found.
std::vector<std::string> overrides_that_matter(const SearchArguments& args) {
  std::vector<std::string> out;
  for (const std::string& text : args.model.overrides)
    if (!text.starts_with("parallel.") && !text.starts_with("device")) out.push_back(text);
  return out;
}

// Of the checkpoint's files, whose place may come to hold other weights.
std::string content_of(const InferenceModel& model) {
  const CheckpointReader reader(model.checkpoint(), /*verify_hashes=*/false);
  io::ContentHash hash;
  for (const io::ShardFile& shard : reader.manifest().shards()) hash.update(shard.xxh3_128());
  return hash.hex();
}

// All that decides what is drawn and scored. More iterations go on from fewer.
Json identity(const SearchArguments& args, const InferenceModel& model, const Task& task) {
  const SearchOptions& o = args.search;
  const TokenStore* store = &task.reader->store();
  const bool joined = task.reader->packing().documents == Documents::kJoined;
  return {{"kind", "farspan extend search"},
          {"model", std::filesystem::weakly_canonical(model.checkpoint()).string()},
          {"step", model.step()},
          {"checkpoint", content_of(model)},
          {"overrides", overrides_that_matter(args)},
          {"data", data_fingerprint(std::span(&store, 1))},
          {"documents", joined ? "joined" : "masked"},
          {"reset_per_document", task.reader->packing().reset_positions},
          {"original_context", task.space.original_context},
          {"target_context", task.space.target_context},
          {"samples", task.samples.size()},
          {"tokens", task.scored},
          {"population", o.population},
          {"parents", o.parents},
          {"mutations", o.mutations},
          {"crossovers", o.crossovers},
          {"mutation_probability", o.mutation_probability},
          {"seed", o.seed}};
}

// One line: a value of model.rope.scaling.
std::string scaling_text(const Task& task, const RotaryFactors& f) {
  const std::vector<double> ones(f.of_pair.size(), 1.0);
  return fmt::format(
      "{{type: longrope, original_context: {}, target_context: {}, attention_factor: {}, "
      "short_factor: [{}], long_factor: [{}]}}",
      task.space.original_context, task.space.target_context, f.attention, fmt::join(ones, ", "),
      fmt::join(f.of_pair, ", "));
}

struct Row {
  std::string name;
  Candidate candidate;
};

std::vector<Row> rows_of(const SearchResult& r) {
  return {{"PI", r.known[0]}, {"NTK", r.known[1]}, {"YaRN", r.known[2]}, {"found", r.best}};
}

std::string to_text(const SearchArguments& args, const Task& task, const SearchResult& result) {
  std::string out = fmt::format("{} sample{} of {} tokens of {}, factor {:g} from {}\n",
                                task.samples.size(), task.samples.size() == 1 ? "" : "s",
                                task.length(), task.reader->store().path().string(),
                                task.space.factor(), task.space.original_context);
  out += fmt::format("  {:>8} {:>10} {:>12} {:>16}\n", "scaling", "nll", "perplexity",
                     "attention_factor");
  for (const Row& row : rows_of(result))
    out += fmt::format("  {:>8} {:>10.4f} {:>12.4f} {:>16.4f}\n", row.name, row.candidate.nll,
                       std::exp(row.candidate.nll), row.candidate.factors.attention);
  return out + fmt::format("{} candidates; the best, by {} of iteration {}, is in {}\n",
                           result.evaluations, result.best.origin, result.best.iteration, args.out);
}

// Beside what identifies the search: what it found.
std::string to_json(const SearchArguments& args, const Json& search, const InferenceModel& model,
                    const Task& task, const SearchResult& result) {
  Json out = search;
  out["data"] = task.reader->store().path().string();
  out["ranks"] = model.world().size();
  out["results"] = Json::array();
  for (const Row& row : rows_of(result))
    out["results"].push_back({{"name", row.name},
                              {"origin", row.candidate.origin},
                              {"iteration", row.candidate.iteration},
                              {"nll", row.candidate.nll},
                              {"perplexity", std::exp(row.candidate.nll)},
                              {"attention_factor", row.candidate.factors.attention},
                              {"long_factor", row.candidate.factors.of_pair}});
  out["evaluations"] = result.evaluations;
  out["best_nll_by_iteration"] = result.best_nll_by_iteration;
  out["override"] = "model.rope.scaling=" + scaling_text(task, result.best.factors);
  out["out"] = args.out;
  return out.dump(2) + "\n";
}

std::string to_yaml(const Task& task, const InferenceModel& model, const SearchResult& result) {
  std::string out = fmt::format("# farspan extend search: {}, step {}\n",
                                model.checkpoint().string(), model.step());
  for (const Row& row : rows_of(result))
    out += fmt::format("#   {:<5} perplexity {:.4f} at {} tokens\n", row.name,
                       std::exp(row.candidate.nll), task.length());
  return out +
         fmt::format("model:\n  rope:\n    scaling: {}\n", scaling_text(task, result.best.factors));
}

// Collective.
SearchResult search(const SearchArguments& args, InferenceModel& model, const Task& task,
                    SearchProgress& progress) {
  const bool notes = model.world().rank() == 0 && !args.model.quiet;
  const auto scoring = scoring_model(model);
  const auto evaluate = [&](Candidate c) {
    std::optional<double> known;
    together(model.world(), [&] { known = progress.next(c); });
    if (known) return *known;
    together(model.world(), [&] { model.rescale(to_scaling(c.factors, task.space)); });
    c.nll = long_samples_nll(*scoring, *task.reader, task.samples, task.length());
    together(model.world(), [&] { progress.add(c); });
    return c.nll;
  };
  return FactorSearch(task.space, args.search, evaluate).run([&](const SearchResult& so_far) {
    if (notes)
      fmt::print(stderr, "iteration {} of {}: {} candidates, best perplexity {:.4f} ({})\n",
                 so_far.best_nll_by_iteration.size(), args.search.iterations, so_far.evaluations,
                 std::exp(so_far.best.nll), so_far.best.origin);
  });
}

// Ranks take whole samples, so that sums are the same bits on any number of them.
std::vector<std::string> with_own_samples(const SearchArguments& args, int ranks) {
  std::vector<std::string> out = args.model.overrides;
  const bool given = std::any_of(out.begin(), out.end(), [](const std::string& text) {
    return text.starts_with("parallel.");
  });
  if (ranks > 1 && !given) out.emplace_back("parallel.context=1");
  return out;
}

void search_on_rank(const SearchArguments& args, Communicator& world, const RankEnvironment& rank) {
  InferenceOptions options = inference_options(args.model, rank, {"a shorter --target-context"});
  options.ranks_share = false;  // each has samples of its own
  InferenceModel model(args.model.model, with_own_samples(args, world.size()), options, world);
  print_notes(model, args.model.quiet);
  Task task;
  Json id;
  together(world, [&] {
    task = plan(args, model);
    id = identity(args, model, task);
  });
  const bool lead = world.rank() == 0;
  if (lead && !args.model.quiet && std::ssize(task.samples) < args.samples)
    fmt::print(stderr, "note: the text has {} samples of {} tokens, not --samples {}\n",
               task.samples.size(), task.length(), args.samples);
  SearchProgress progress(progress_path(args.out), id, world);
  if (lead && !args.model.quiet && progress.recorded() > 0)
    fmt::print(stderr, "goes on after {} candidates in {}\n", progress.recorded(),
               progress_path(args.out));
  const SearchResult result = search(args, model, task, progress);
  together(world, [&] {
    if (!lead) return;
    replace_file(args.out, to_yaml(task, model, result));
    fmt::print("{}",
               args.json ? to_json(args, id, model, task, result) : to_text(args, task, result));
    std::fflush(stdout);
  });
}

void add_search_options(CLI::App& cmd, SearchOptions& o) {
  struct Count {
    const char* name;
    std::int64_t* value;
    std::int64_t least;
    const char* what;
  };
  const std::array<Count, 5> counts = {
      {{"--population", &o.population, 3, "candidates of the first iteration"},
       {"--iterations", &o.iterations, 1, "iterations; a search that is done goes on with more"},
       {"--parents", &o.parents, 1, "best candidates, of which the next are drawn"},
       {"--mutations", &o.mutations, 0, "mutations drawn in an iteration"},
       {"--crossovers", &o.crossovers, 0, "crossovers drawn in an iteration"}}};
  for (const Count& count : counts)
    cmd.add_option(count.name, *count.value, count.what)
        ->check(CLI::Range(count.least, std::int64_t{1'000'000}))
        ->capture_default_str();
  cmd.add_option("--mutation-probability", o.mutation_probability, "of each factor")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  cmd.add_option("--seed", o.seed, "of samples and candidates")
      ->check(whole_number())
      ->capture_default_str();
}

}  // namespace

void add_extend_command(CLI::App& app, Session& session) {
  CLI::App* extend = app.add_subcommand(
      "extend", "read a longer context: alone, with --local-ranks N, or under mpirun -np P");
  extend->require_subcommand(1);
  auto args = std::make_shared<SearchArguments>();
  CLI::App* cmd = extend->add_subcommand(
      "search", "LongRoPE's search of rotary factors, by perplexity, without tuning");
  add_model_options(*cmd, args->model);
  cmd->add_option("--target-context", args->target, "context to reach, tokens, such as 32k")
      ->required();
  cmd->add_option("--original-context", args->original,
                  "context of the weights (default: what the model was trained for)");
  cmd->add_option("--out", args->out,
                  "FILE.yaml of model.rope.scaling; FILE.progress.jsonl beside it is what an "
                  "interrupted search goes on from")
      ->required();
  cmd->add_option("--data", args->data, "token store (default: data.validation of the run)");
  cmd->add_option(
         "--documents", args->documents,
         "masked: a sample lies in one document; joined: it may cross borders (default: as "
         "the run reads documents)")
      ->check(CLI::IsMember({"masked", "joined"}));
  cmd->add_option("--samples", args->samples, "samples of --target-context tokens")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1'000'000}))
      ->capture_default_str();
  cmd->add_option("--tokens", args->scored,
                  "tokens scored at the end of each sample (default: all of it)");
  add_search_options(*cmd, args->search);
  cmd->add_flag("--json", args->json, "print one JSON object instead of a table");
  cmd->footer("docs/positions.md says what is searched and how to use what is found.");
  cmd->callback([args, &session] {
    run_ranks(
        session, args->model.local_ranks, [&] { check(*args); },
        [&](Communicator& world, const RankEnvironment& rank) {
          search_on_rank(*args, world, rank);
        });
  });
}

}  // namespace farspan::app
