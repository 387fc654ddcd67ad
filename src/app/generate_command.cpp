// farspan generate: text from a trained model.
#include <fmt/format.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "app/command.h"
#include "app/environment.h"
#include "app/model_options.h"
#include "app/number_option.h"
#include "app/text_stream.h"
#include "comm/agree.h"
#include "train/generate.h"

namespace farspan::app {
namespace {

struct GenerateArguments {
  ModelArguments model;
  std::string prompt, prompt_file;
  std::string max_new_tokens = "200";
  double temperature = 0.8, top_p = 0.95;
  std::uint64_t seed = 1;
  std::string stop = "eos";
  std::string chunk;  // "": the default
  bool json = false;
};

[[noreturn]] void refuse(std::string option, std::string what, std::string fix) {
  throw Error(ExitCode::kUsage,
              {.what = std::move(what), .where = std::move(option), .fix = std::move(fix)});
}

// What needs no model.
void check(const GenerateArguments& args) {
  if (args.prompt.empty() && args.prompt_file.empty())
    refuse("--prompt", "there is no text to go on from",
           "give --prompt \"In the beginning\", or --prompt-file FILE");
  if (!args.prompt.empty() && !args.prompt_file.empty())
    refuse("--prompt-file", "--prompt is given too", "give one of the two");
  if (!std::isfinite(args.temperature) || args.temperature < 0)
    refuse("--temperature", fmt::format("{} is not a temperature", args.temperature),
           "use 0 for the most likely token each time, 1 for the model's own probabilities");
  if (!(args.top_p > 0 && args.top_p <= 1))
    refuse("--top-p",
           fmt::format("{} is not a share of probability above 0 and at most 1", args.top_p),
           "use 1 for all tokens, 0.95 to leave out the least likely");
  token_count("--max-new-tokens", args.max_new_tokens);
  if (!args.chunk.empty()) token_count("--chunk", args.chunk);
  if (args.stop.empty())
    refuse("--stop", "an empty text would stop at once", "leave it out, or give a text or eos");
}

std::string prompt_of(const GenerateArguments& args) {
  if (args.prompt_file.empty()) return args.prompt;
  std::ifstream in(args.prompt_file, std::ios::binary);
  std::error_code error;
  const bool readable = in.good() && !std::filesystem::is_directory(args.prompt_file, error);
  std::string text;
  if (readable) text.assign(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
  if (!readable || in.bad())
    throw Error(ExitCode::kBadData, {.what = "the prompt cannot be read",
                                     .where = args.prompt_file,
                                     .fix = "name a text file that you may read"});
  if (text.empty())
    throw Error(ExitCode::kBadData, {.what = "the prompt is empty",
                                     .where = args.prompt_file,
                                     .fix = "put the text to go on from into it"});
  return text;
}

GenerateOptions options_of(const GenerateArguments& args, const InferenceModel& model,
                           std::size_t prompt_tokens) {
  GenerateOptions out{.max_new_tokens = token_count("--max-new-tokens", args.max_new_tokens),
                      .temperature = args.temperature,
                      .top_p = args.top_p,
                      .seed = args.seed,
                      .stop_token = model.tokenizer().eos};
  out.long_attention = long_attention_options(args.model, model);
  if (!args.chunk.empty()) {
    out.chunk = token_count("--chunk", args.chunk);
    if (model.world().size() > 1)
      refuse("--chunk",
             fmt::format("{} ranks compute a prompt in one pass, of which each takes a part",
                         model.world().size()),
             "leave it out, or use one rank");
  }
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  const auto first = static_cast<std::int64_t>(prompt_tokens);
  if (first > kMost - out.max_new_tokens)
    refuse("--max-new-tokens",
           fmt::format("{} tokens of prompt and {} new ones are more than the {} that positions "
                       "can count",
                       first, out.max_new_tokens, kMost),
           "use a shorter prompt, or fewer new tokens");
  return out;
}

// Standard output, or an Error when nobody reads it any more.
void show(const std::string& text) {
  if (text.empty()) return;
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0)
    throw Error(ExitCode::kExhausted, {.what = "the text cannot be written",
                                       .where = "standard output",
                                       .fix = "free the disk, or keep the reader running"});
}

struct Written {
  std::string text;
  bool stopped = false;  // by the stop text
  Generated generated;
};

// Rank 0 shows the text as it comes. Collective.
Written write_text(InferenceModel& model, const std::vector<std::int32_t>& prompt,
                   const GenerateOptions& options, const GenerateArguments& args,
                   const Tokenizer& tokenizer) {
  Written out;
  TextStream stream(args.stop == "eos" ? "" : args.stop);
  const auto add = [&](const std::string& text) {
    out.text += text;
    if (!args.json) show(text);
  };
  out.generated = generate(model, prompt, options, [&](std::int32_t token) {
    std::string bytes;
    tokenizer.decode({token}, bytes);
    add(stream.push(bytes));
    return !stream.stopped();
  });
  if (model.world().rank() != 0) return out;
  add(stream.finish());
  out.stopped = stream.stopped();
  return out;
}

double per_second(std::size_t count, double seconds) {
  return seconds > 0 ? static_cast<double>(count) / seconds : 0;
}

void print_json(const Written& written, const std::string& prompt, std::size_t prompt_tokens,
                const GenerateOptions& options, const InferenceModel& model) {
  const Generated& g = written.generated;
  const auto new_tokens = static_cast<std::int64_t>(g.tokens.size());
  const char* ended = written.stopped                       ? "stop"
                      : new_tokens < options.max_new_tokens ? "eos"
                                                            : "length";
  std::string rest = prompt;  // a prompt may be no UTF-8
  std::string shown = take_utf8(rest);
  if (!rest.empty()) shown += "\xef\xbf\xbd";
  const nlohmann::ordered_json json = {
      {"prompt", shown},
      {"text", written.text},
      {"tokens", g.tokens},
      {"ended", ended},
      {"seed", options.seed},
      {"prompt_tokens", prompt_tokens},
      {"seconds_prefill", g.seconds_prefill},
      {"seconds_decode", g.seconds_decode},
      {"tokens_per_second", per_second(g.tokens.size(), g.seconds_decode)},
      {"prompt_tokens_per_second", per_second(prompt_tokens, g.seconds_prefill)},
      {"checkpoint", model.checkpoint().string()},
      {"step", model.step()},
      {"ranks", model.world().size()}};
  show(json.dump() + "\n");
}

void generate_on_rank(const GenerateArguments& args, Communicator& world,
                      const RankEnvironment& rank) {
  std::string text;
  together(world, [&] { text = prompt_of(args); });
  agree_on(world, "prompt", text);
  std::vector<std::string> smaller{"a shorter prompt", "a lower --max-new-tokens"};
  if (world.size() == 1) smaller.emplace_back("a lower --chunk");
  InferenceModel model(args.model.model, args.model.overrides,
                       inference_options(args.model, rank, std::move(smaller)), world);
  const bool lead = world.rank() == 0, notes = lead && !args.model.quiet;
  print_notes(model, args.model.quiet);
  std::unique_ptr<Tokenizer> tokenizer;
  std::vector<std::int32_t> prompt;
  GenerateOptions options;
  together(world, [&] {
    tokenizer = tokenizer_of(model);
    tokenizer->encode(text, prompt);
    options = options_of(args, model, prompt.size());
  });
  const std::int64_t reach = static_cast<std::int64_t>(prompt.size()) + options.max_new_tokens;
  const std::string beyond = beyond_training_note(model, reach, options.long_attention.kind);
  if (notes && !beyond.empty()) fmt::print(stderr, "note: {}\n", beyond);
  if (notes)
    fmt::print(stderr, "{} (step {}, {:.2f}M parameters), seed {}, {} rank{}\n",
               model.checkpoint().string(), model.step(),
               static_cast<double>(model.parameters()) / 1e6, args.seed, world.size(),
               world.size() == 1 ? "" : "s");
  const Written written = write_text(model, prompt, options, args, *tokenizer);
  if (!lead) return;
  const Generated& g = written.generated;
  if (args.json)
    print_json(written, text, prompt.size(), options, model);
  else
    show("\n");
  if (notes)
    fmt::print(stderr, "prompt: {} tokens in {:.2f} s; text: {} tokens in {:.2f} s ({:.1f}/s)\n",
               prompt.size(), g.seconds_prefill, g.tokens.size(), g.seconds_decode,
               per_second(g.tokens.size(), g.seconds_decode));
}

}  // namespace

void add_generate_command(CLI::App& app, Session& session) {
  auto args = std::make_shared<GenerateArguments>();
  CLI::App* cmd = app.add_subcommand(
      "generate", "text from a model: alone, with --local-ranks N, or under mpirun -np P");
  add_model_options(*cmd, args->model);
  cmd->add_option("--prompt", args->prompt, "the text to go on from");
  cmd->add_option("--prompt-file", args->prompt_file, "a file with that text");
  cmd->add_option("--max-new-tokens", args->max_new_tokens, "most tokens to add")
      ->capture_default_str();
  cmd->add_option("--temperature", args->temperature,
                  "flattens (above 1) or sharpens the model's probabilities; 0: the most likely "
                  "token each time")
      ->capture_default_str();
  cmd->add_option("--top-p", args->top_p,
                  "draw from the most likely tokens that have this probability together")
      ->capture_default_str();
  cmd->add_option("--seed", args->seed, "of the draws")
      ->check(whole_number())
      ->capture_default_str();
  cmd->add_option("--stop", args->stop,
                  "a text that ends the output and is left out of it; eos: only the end of a "
                  "document, which always ends it")
      ->capture_default_str();
  cmd->add_option("--chunk", args->chunk,
                  "one rank: most tokens of the prompt in one pass, bounds memory (default 2k)");
  cmd->add_flag("--json", args->json, "print one JSON object instead of the text");
  cmd->callback([args, &session] {
    run_ranks(
        session, args->model.local_ranks, [&] { check(*args); },
        [&](Communicator& world, const RankEnvironment& rank) {
          generate_on_rank(*args, world, rank);
        });
  });
}

}  // namespace farspan::app
