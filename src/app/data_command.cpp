// farspan data import, farspan data synth: token stores from text and from nothing.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "app/command.h"
#include "app/number_option.h"
#include "app/ranks.h"
#include "config/quantity.h"
#include "data/import.h"
#include "data/synth.h"

namespace farspan::app {
namespace {

// A bar redrawn in place on a terminal; elsewhere a line every five seconds.
class DataProgress {
 public:
  explicit DataProgress(bool quiet) : quiet_(quiet), bar_(::isatty(STDERR_FILENO) != 0) {}
  DataProgress(const DataProgress&) = delete;
  DataProgress& operator=(const DataProgress&) = delete;
  ~DataProgress() { clear(); }

  // `share` of the whole, negative when not known.
  void show(double share, const std::string& text) {
    if (quiet_) return;
    const auto now = std::chrono::steady_clock::now();
    const double since = std::chrono::duration<double>(now - last_).count();
    if (since < (bar_ ? 0.1 : 5.0)) return;
    last_ = now;
    if (!bar_) {
      fmt::print(stderr, "{}{}\n", share < 0 ? "" : fmt::format("{:3.0f}%  ", 100 * share), text);
      return;
    }
    constexpr int kWidth = 30;
    const int filled = static_cast<int>(kWidth * std::clamp(share, 0.0, 1.0));
    const std::string bar = share < 0 ? ""
                                      : fmt::format("[{:=<{}}{:{}}] {:3.0f}%  ", "", filled, "",
                                                    kWidth - filled, 100 * share);
    fmt::print(stderr, "\r\x1b[K{}{}", bar, text);
    std::fflush(stderr);
    drawn_ = true;
  }
  void clear() {
    if (drawn_) fmt::print(stderr, "\r\x1b[K");
    drawn_ = false;
  }

 private:
  bool quiet_, bar_, drawn_ = false;
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

struct CommonArguments {
  std::string out, split;
  bool force = false, quiet = false, json = false;
};

struct ImportArguments : CommonArguments {
  std::vector<std::string> inputs;
  std::string format, tokenizer, document, field, vocab_size;
};

struct SynthArguments : CommonArguments {
  std::string kind, labels = "answer";
  std::string tokens = "1M", documents = "0", length = "1k", vocab_size = "260";
  std::uint64_t seed = 1;
};

// "64k", "1M": k and M are binary, as for lengths in a configuration.
std::int64_t quantity(const std::string& text, const char* option, std::int64_t least) {
  const auto reading = read_integer(text, config::LENGTH);
  const bool ok = reading.ok && reading.value >= least && reading.value <= (std::int64_t{1} << 50);
  if (!ok)
    throw Error(
        ExitCode::kUsage,
        {.what = fmt::format("`{}` {}", text, reading.ok ? "is out of range" : reading.what),
         .where = option,
         .fix = fmt::format("give a whole number of at least {}, such as 4096, 4k or 1M", least)});
  return static_cast<std::int64_t>(reading.value);
}

nlohmann::ordered_json to_json(const SinkReport::Part& part) {
  const StoreInfo& info = part.info;
  nlohmann::ordered_json out;
  out["path"] = part.path.string();
  out["documents"] = info.num_documents;
  out["tokens"] = info.num_tokens;
  out["vocab_size"] = info.tokenizer.vocab_size;
  out["tokenizer"] = info.tokenizer.name;
  out["token_bytes"] = info.token_bytes;
  out["labels"] = info.has_labels;
  out["position_ids"] = info.has_position_ids;
  out["segment_ids"] = info.has_segment_ids;
  out["bytes"] = info.file_bytes;
  out["xxh3_128"] = info.file_hash;
  return out;
}

void print_report(const SinkReport& report, const CommonArguments& args, double seconds,
                  std::int64_t empty_documents) {
  if (args.json) {
    nlohmann::ordered_json out;
    out["stores"] = nlohmann::ordered_json::array();
    for (const auto& part : report.parts) out["stores"].push_back(to_json(part));
    out["empty_documents"] = empty_documents;
    out["seconds"] = seconds;
    fmt::print("{}\n", out.dump(2));
    return;
  }
  if (args.quiet) return;
  for (const auto& part : report.parts)
    fmt::print("{}: {} tokens in {} document{} (vocabulary {}, {:.1f} MB)\n", part.path.string(),
               part.info.num_tokens, part.info.num_documents,
               part.info.num_documents == 1 ? "" : "s", part.info.tokenizer.vocab_size,
               static_cast<double>(part.info.file_bytes) / 1e6);
  if (empty_documents > 0)
    fmt::print("{} document{} without text left out\n", empty_documents,
               empty_documents == 1 ? "" : "s");
}

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

ImportOptions import_options(const ImportArguments& args) {
  ImportOptions out{.format = parse_import_format(args.format), .out = args.out};
  auto belongs = [](const std::string& value, bool fits, const char* option, const char* format) {
    if (value.empty() || fits) return;
    throw Error(ExitCode::kUsage,
                {.what = fmt::format("{} means nothing for this format", option),
                 .where = option,
                 .fix = fmt::format("leave it out; it belongs to --format {}", format)});
  };
  belongs(args.document, out.format == ImportFormat::kText, "--document", "text");
  belongs(args.field, out.format == ImportFormat::kJsonl, "--field", "jsonl");
  belongs(args.vocab_size, out.format == ImportFormat::kTokens, "--vocab-size", "tokens");
  out.tokenizer = args.tokenizer;
  if (!args.document.empty()) out.document = parse_document_unit(args.document);
  if (!args.field.empty()) out.field = args.field;
  if (!args.vocab_size.empty()) out.vocab_size = quantity(args.vocab_size, "--vocab-size", 1);
  if (!args.split.empty()) out.split = parse_split(args.split);
  out.overwrite = args.force;
  return out;
}

void run_import(const ImportArguments& args) {
  const auto begin = std::chrono::steady_clock::now();
  DataProgress progress(args.quiet);
  const ImportReport report =
      import_files(args.inputs, import_options(args), [&progress](const ImportProgress& p) {
        const double share = p.total_bytes > 0
                                 ? static_cast<double>(p.bytes) / static_cast<double>(p.total_bytes)
                                 : -1;
        progress.show(share, fmt::format("{:.0f} MB read, {} documents, {:.1f}M tokens",
                                         static_cast<double>(p.bytes) / 1e6, p.documents,
                                         static_cast<double>(p.tokens) / 1e6));
      });
  progress.clear();
  print_report(report.stores, args, seconds_since(begin), report.empty_documents);
}

void run_synth(const SynthArguments& args) {
  const auto begin = std::chrono::steady_clock::now();
  SynthOptions options{.kind = parse_synth_kind(args.kind),
                       .tokens = quantity(args.tokens, "--tokens", 1),
                       .documents = quantity(args.documents, "--documents", 0),
                       .length = quantity(args.length, "--length", 1),
                       .vocab_size = quantity(args.vocab_size, "--vocab-size", 1),
                       .seed = args.seed,
                       .labels = args.labels == "all" ? LabelMode::kAll : LabelMode::kAnswer,
                       .out = args.out,
                       .overwrite = args.force};
  if (!args.split.empty()) options.split = parse_split(args.split);
  DataProgress progress(args.quiet);
  const SinkReport report = synthesize(options, [&progress](std::int64_t done, std::int64_t total) {
    progress.show(static_cast<double>(done) / static_cast<double>(total), "made");
  });
  progress.clear();
  print_report(report, args, seconds_since(begin), 0);
}

void add_common(CLI::App& cmd, CommonArguments& args) {
  cmd.add_option("--out", args.out, "token store to write, such as data/text.h5")->required();
  cmd.add_option(
      "--split", args.split,
      "NAME=SHARE, such as val=0.01: this share of the documents goes to a second store\n"
      "beside --out (data/a.h5 or data/a.train.h5 -> data/a.val.h5)");
  cmd.add_flag("--force", args.force, "replace existing output");
  cmd.add_flag("--quiet", args.quiet, "no progress and no summary");
  cmd.add_flag("--json", args.json, "print the summary as one JSON object");
}

void add_import(CLI::App& data) {
  auto args = std::make_shared<ImportArguments>();
  CLI::App* cmd = data.add_subcommand("import", "make a token store from text or token files");
  cmd->add_option("--format", args->format, "text, jsonl or tokens")->required();
  cmd->add_option("--tokenizer", args->tokenizer,
                  "bytes (the default for text and jsonl): 256 bytes and 4 specials");
  add_common(*cmd, *args);
  cmd->add_option(
      "--document", args->document,
      "text: what a document is: line, paragraph (up to a blank line; the default), file");
  cmd->add_option("--field", args->field, "jsonl: field that holds the text (default: text)");
  cmd->add_option("--vocab-size", args->vocab_size,
                  "tokens: vocabulary of the ids (default: the tokenizer's, else largest id + 1)");
  cmd->add_option("input", args->inputs, "files to read")->required();
  cmd->callback([args] {
    if (is_first_process()) run_import(*args);
  });
}

void add_synth(CLI::App& data) {
  auto args = std::make_shared<SynthArguments>();
  CLI::App* cmd = data.add_subcommand("synth", "make test data that needs no download");
  cmd->add_option("--kind", args->kind,
                  "passkey: a key hidden in filler text    kv: look up one of many pairs\n"
                  "copy: repeat random symbols             markov: text of known entropy\n"
                  "documents: markov text in documents of very different lengths")
      ->required();
  add_common(*cmd, *args);
  cmd->add_option("--tokens", args->tokens, "tokens in all (k, M binary)")->capture_default_str();
  cmd->add_option("--documents", args->documents, "number of documents, instead of --tokens");
  cmd->add_option("--length", args->length, "tokens per document")->capture_default_str();
  cmd->add_option("--vocab-size", args->vocab_size, "260: bytes; else integers 0..N-1")
      ->capture_default_str();
  cmd->add_option("--seed", args->seed, "seed")->check(whole_number())->capture_default_str();
  cmd->add_option("--labels", args->labels,
                  "passkey, kv, copy: score the answer only, or all tokens")
      ->check(CLI::IsMember({"answer", "all"}))
      ->capture_default_str();
  cmd->callback([args] {
    if (is_first_process()) run_synth(*args);
  });
}

}  // namespace

void add_data_command(CLI::App& app, Session&) {
  CLI::App* data = app.add_subcommand("data", "make token stores");
  data->require_subcommand(1);
  add_import(*data);
  add_synth(*data);
}

}  // namespace farspan::app
