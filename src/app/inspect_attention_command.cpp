// farspan inspect attention: what a layout and a strategy cost, before anything runs.
#include "app/inspect_attention_command.h"

#include <unistd.h>

#include <cctype>
#include <cstdio>
#include <memory>
#include <string>

#include "app/attention_report.h"
#include "app/attention_svg.h"
#include "app/environment.h"
#include "train/durable_file.h"

namespace farspan::app {
namespace {

struct Arguments {
  AttentionOptions options{};
  std::string svg{};
  bool json = false;
};

// Block characters appear where somebody looks and the terminal can show them.
bool shows_unicode() {
  if (::isatty(STDOUT_FILENO) == 0) return false;
  std::string locale;  // the first that is set decides, as in setlocale(3)
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"})
    if (locale.empty()) locale = environment_variable(name);
  for (char& c : locale) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return locale.find("utf-8") != std::string::npos || locale.find("utf8") != std::string::npos;
}

void write_picture(const std::string& path, const AttentionAnswer& result) {
  try {
    replace_file(path, attention_svg(result));
  } catch (const Error& e) {
    if (e.code() != ExitCode::kUsage) throw;  // a full disk says so itself
    throw Error(e.code(), {.what = "the picture cannot be written",
                           .where = fmt::format("--svg {}: {}", path, e.text().where),
                           .fix = "name a file in a folder that exists and that you can write"});
  }
}

void run(const Arguments& args) {
  const AttentionQuestion question = read_question(args.options);
  for (const std::string& note : question.notes) fmt::print(stderr, "note: {}\n", note);
  const AttentionAnswer result = answer(question);
  if (!args.svg.empty()) write_picture(args.svg, result);
  if (args.json)
    fmt::print("{}\n", attention_json(result).dump(2));
  else
    fmt::print("{}", attention_text(result, {.unicode = shows_unicode()}));
  std::fflush(stdout);
  if (!args.svg.empty()) fmt::print(stderr, "wrote {}\n", args.svg);
}

}  // namespace

void add_inspect_attention(CLI::App& inspect, Session&) {
  auto args = std::make_shared<Arguments>();
  AttentionOptions& o = args->options;
  CLI::App* cmd = inspect.add_subcommand(
      "attention", "each rank's work, bytes and waiting under a layout and a strategy");
  cmd->add_option("config", o.config, "configuration, YAML; or give --sequence-length");
  cmd->add_option("overrides", o.overrides, "section.key=value, as in the YAML");
  cmd->add_option("--ranks", o.ranks, "ranks that share a sequence");
  cmd->add_option("--sequence-length", o.sequence_length, "tokens: 4k, 1M (binary)");
  cmd->add_option("--doc-lengths", o.doc_lengths,
                  "file of document lengths, one integer a line (default: the configuration's "
                  "data, or one document)");
  cmd->add_option("--window", o.window, "tokens that a query sees, itself included");
  cmd->add_option("--sinks", o.sinks, "first tokens that stay visible outside the window");
  cmd->add_flag("--non-causal", o.non_causal, "tokens see both directions");
  cmd->add_option("--layout", o.layout, "contiguous, zigzag, striped, balanced or auto");
  cmd->add_option("--attention", o.attention, "ring, allgather, ulysses, hybrid or auto");
  cmd->add_option("--ulysses", o.ulysses, "all-to-all ranks inside a hybrid");
  cmd->add_option("--heads", o.heads, "query heads (default 32)");
  cmd->add_option("--kv-heads", o.kv_heads, "key/value heads (default 8, or all of --heads)");
  cmd->add_option("--head-dim", o.head_dim, "dimension of a head (default 128)");
  cmd->add_option("--dtype", o.dtype, "bf16 or fp32");
  cmd->add_option("--device", o.device, "whose nominal speeds: cpu or cuda");
  cmd->add_option("--bandwidth", o.bandwidth, "GB/s from a rank to the next one");
  cmd->add_option("--flops", o.flops, "TFLOP/s of a rank");
  cmd->add_option("--svg", args->svg, "write a picture");
  cmd->add_flag("--json", args->json, "print one JSON object");
  cmd->footer("docs/inspect_attention.md explains the figures.");
  cmd->callback([args, &inspect] {
    if (inspect.count("path") > 0 || inspect.count("--digest") > 0)
      throw Error(ExitCode::kUsage,
                  {.what = "inspect was given both a path and attention",
                   .fix = "farspan inspect PATH, or farspan inspect attention; a path of that "
                          "name is ./attention"});
    if (inspect.count("--json") > 0) args->json = true;
    run(*args);
  });
}

}  // namespace farspan::app
