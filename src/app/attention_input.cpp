#include "app/attention_input.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <optional>

#include "config/quantity.h"
#include "config/validate.h"
#include "data/loader.h"
#include "train/micro_batch.h"

namespace farspan::app {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kMaxTokens = std::int64_t{1} << 28;  // of a plan: bounds its memory
constexpr std::int64_t kMaxRanks = 1024;

// An option that is a key of the configuration under another name.
struct OptionKey {
  const char* option;
  const char* key;
  const std::string AttentionOptions::*value;
};
constexpr OptionKey kKeys[] = {
    {"--sequence-length", "train.sequence_length", &AttentionOptions::sequence_length},
    {"--window", "model.sliding_window", &AttentionOptions::window},
    {"--sinks", "model.attention_sinks", &AttentionOptions::sinks},
    {"--ranks", "parallel.context", &AttentionOptions::ranks},
    {"--layout", "parallel.layout", &AttentionOptions::layout},
    {"--attention", "parallel.attention", &AttentionOptions::attention},
    {"--ulysses", "parallel.ulysses", &AttentionOptions::ulysses},
    {"--heads", "model.num_attention_heads", &AttentionOptions::heads},
    {"--kv-heads", "model.num_key_value_heads", &AttentionOptions::kv_heads},
    {"--head-dim", "model.head_dim", &AttentionOptions::head_dim},
    {"--dtype", "train.precision", &AttentionOptions::dtype},
    {"--device", "device", &AttentionOptions::device},
};

std::int64_t read_count(const char* option, const std::string& text, std::int64_t least,
                        std::int64_t most) {
  const auto read = read_integer(text, config::PLAIN);
  const auto refuse = [&](const std::string& what, const std::string& fix) {
    throw Error(ExitCode::kUsage,
                {.what = what, .where = fmt::format("{} {}", option, text), .fix = fix});
  };
  if (!read.ok) refuse(fmt::format("'{}' {}", text, read.what), read.fix);
  if (read.value < least || read.value > most)
    refuse(fmt::format("must be between {} and {}", least, most), "give a number in this range");
  return static_cast<std::int64_t>(read.value);
}

double read_rate(const char* option, const std::string& text, const char* unit) {
  const auto read = read_number(text, config::PLAIN);
  if (!read.ok || !(read.value > 0))
    throw Error(ExitCode::kUsage,
                {.what = read.ok ? "must be above 0" : fmt::format("'{}' {}", text, read.what),
                 .where = fmt::format("{} {}", option, text),
                 .fix = fmt::format("give a number of {}", unit)});
  return read.value;
}

// The model that stands in for a configuration: its attention is given by options, its other work
// has the proportions of Llama 3 8B.
std::string stand_in(const AttentionOptions& o, std::vector<std::string>& assumed) {
  const std::int64_t heads =
      o.heads.empty() ? 32 : read_count("--heads", o.heads, 1, std::int64_t{1} << 20);
  const std::int64_t head_dim =
      o.head_dim.empty() ? 128 : read_count("--head-dim", o.head_dim, 1, 65536);
  const std::int64_t kv_heads = o.heads.empty() ? std::min<std::int64_t>(8, heads) : heads;
  if (o.heads.empty() && o.kv_heads.empty()) assumed.emplace_back("32 query and 8 key/value heads");
  if (o.heads.empty() && !o.kv_heads.empty()) assumed.emplace_back("32 query heads");
  if (!o.heads.empty() && o.kv_heads.empty())
    assumed.push_back(fmt::format("{} key/value heads, as many as query heads", kv_heads));
  if (o.head_dim.empty()) assumed.emplace_back("head dimension 128");
  if (o.dtype.empty()) assumed.emplace_back("bf16");
  assumed.emplace_back("projections and an MLP of 3.5 times their width beside attention");
  const std::int64_t hidden = heads * head_dim;
  return fmt::format(
      "name: attention\n"
      "device: cuda\n"
      "model: {{vocab_size: 1, hidden_size: {0}, intermediate_size: {1}, num_hidden_layers: 1,\n"
      "        num_attention_heads: {2}, num_key_value_heads: {3}, head_dim: {4}, position: "
      "none}}\n"
      "data: {{train: [none]}}\n"
      "train: {{steps: 1}}\n",
      hidden, std::max<std::int64_t>(1, hidden * 7 / 2), heads, kv_heads, head_dim);
}

// In a configuration 0 is the absence of a window; who types a window of no tokens means something
// else, and no query could see anything.
void refuse_empty_window(const AttentionOptions& o) {
  const auto read = read_integer(o.window, config::LENGTH);
  if (o.window.empty() || !read.ok || read.value > 0) return;
  throw Error(ExitCode::kUsage,
              {.what = fmt::format("a window of {} tokens shows a query nothing, not even itself",
                                   o.window),
               .where = "--window " + o.window,
               .fix = "leave --window out (or set model.sliding_window=0) for full attention, or "
                      "give 1 or more tokens"});
}

// A line of a file that may be anything, for a message: its first characters, without bytes that a
// terminal would obey.
std::string printable(const std::string& line) {
  std::string out = line.substr(0, 40);
  for (char& c : out)
    if (c < ' ' || c > '~') c = '?';
  return out;
}

std::vector<std::string> overrides_of(const AttentionOptions& o) {
  std::vector<std::string> overrides = o.overrides;
  for (const OptionKey& k : kKeys)
    if (const std::string& value = o.*k.value; !value.empty())
      overrides.push_back(fmt::format("{}={}", k.key, value));
  if (o.non_causal) overrides.emplace_back("model.is_causal=false");
  overrides.emplace_back("parallel.data=1");
  if (!o.sequence_length.empty()) overrides.emplace_back("train.batch_tokens=null");
  return overrides;
}

// An issue with a key that an option set is an issue with the option.
void name_options(std::vector<Issue>& issues, const AttentionOptions& o) {
  for (Issue& issue : issues) {
    for (const OptionKey& k : kKeys) {
      if (issue.key != k.key || (o.*k.value).empty()) continue;
      issue.where = "command line";
      issue.key = fmt::format("{} ({})", k.option, k.key);
    }
  }
}

config::RunConfig resolved(const AttentionOptions& o, AttentionQuestion& q) {
  refuse_empty_window(o);
  const std::vector<std::string> overrides = overrides_of(o);
  LoadResult read = o.config.empty() ? read_config(stand_in(o, q.assumed), "options", overrides)
                                     : read_config_file(o.config, overrides);
  const std::int64_t ranks = read.loaded.config.parallel().context();
  LoadResult checked =
      check_config(std::move(read),
                   {.num_ranks = static_cast<int>(std::clamp<std::int64_t>(ranks, 1, kMaxRanks)),
                    .need_files = false,
                    .trains = false});
  const auto is_error = [](const Issue& issue) { return !issue.note; };
  if (std::any_of(checked.issues.begin(), checked.issues.end(), is_error)) {
    name_options(checked.issues, o);
    throw ConfigError(checked.issues);
  }
  return checked.loaded.config;
}

[[noreturn]] void bad_line(const std::string& path, std::int64_t line, const std::string& what,
                           const std::string& fix) {
  throw Error(ExitCode::kUsage,
              {.what = what, .where = fmt::format("{}:{}", path, line), .fix = fix});
}

std::vector<std::int64_t> read_lines(const std::string& path) {
  std::ifstream file(path);
  std::error_code error;
  if (!file || fs::is_directory(path, error))
    throw Error(ExitCode::kUsage, {.what = "the file of document lengths cannot be read",
                                   .where = path,
                                   .fix = "name a text file with one integer a line"});
  std::vector<std::int64_t> lengths;
  std::int64_t number = 0;
  for (std::string line; std::getline(file, line);) {
    if (++number == 1 && line.rfind("\xEF\xBB\xBF", 0) == 0) line.erase(0, 3);  // a UTF-8 mark
    const std::size_t first = line.find_first_not_of(" \t\r");
    if (first == std::string::npos || line[first] == '#') continue;
    const std::string text = line.substr(first, line.find_last_not_of(" \t\r") - first + 1);
    const auto read = read_integer(text, config::LENGTH);
    if (!read.ok)
      bad_line(path, number, fmt::format("'{}' {}", printable(text), read.what),
               "one length in tokens a line; # begins a comment line");
    if (read.value < 1 || read.value > INT32_MAX)
      bad_line(path, number, fmt::format("a document of {} tokens", printable(text)),
               "lengths are between 1 and 2147483647 tokens");
    lengths.push_back(static_cast<std::int64_t>(read.value));
  }
  if (lengths.empty())
    throw Error(ExitCode::kUsage, {.what = "the file holds no document length",
                                   .where = path,
                                   .fix = "write one integer a line"});
  return lengths;
}

// The first micro-batch that training would see; nullopt where a token store is absent.
std::optional<Batch> first_batch(const config::RunConfig& config) {
  for (const auto& source : config.data().train())
    if (std::error_code error; !fs::exists(source.path(), error)) return std::nullopt;
  SampleReader reader = open_training_data(config, TokenStore::Verify::kSize);
  return reader.make_batch(0, config.train().micro_batch(), config.train().sequence_length(),
                           reader.first_stage());
}

void set_documents(const AttentionOptions& o, const config::RunConfig& config,
                   AttentionQuestion& q) {
  const std::int64_t length = config.train().sequence_length();
  if (!o.doc_lengths.empty()) {
    q.problem = attention_case(config, read_document_lengths(o.doc_lengths, length, q.notes), 1);
    return;
  }
  if (o.config.empty()) {
    q.problem = attention_case(config, {length}, 1);
    q.assumed.emplace_back("one document");
    return;
  }
  const std::int64_t sequences = config.train().micro_batch();
  if (const auto batch = first_batch(config)) {
    q.problem = attention_case(config, document_lengths(batch->segments), sequences);
    return;
  }
  q.problem = attention_case(
      config, std::vector<std::int64_t>(static_cast<std::size_t>(sequences), length), sequences);
  q.notes.emplace_back(
      "the training data is not there: each sequence is taken for one document "
      "(--doc-lengths FILE gives others)");
}

void set_speeds(const AttentionOptions& o, const config::RunConfig& config, AttentionQuestion& q) {
  q.speeds = nominal_speeds(config.device(), q.problem.heads.compute, q.problem.ranks);
  std::string given;
  if (!o.bandwidth.empty()) {
    const double rate = read_rate("--bandwidth", o.bandwidth, "GB/s") * 1e9;
    q.speeds.bytes_per_second = q.speeds.inside_bytes_per_second = rate;
    given = fmt::format("{:g} GB/s", rate / 1e9);
  }
  if (!o.flops.empty()) {
    const double rate = read_rate("--flops", o.flops, "TFLOP/s") * 1e12;
    q.speeds.flops_per_second = q.speeds.backward_flops_per_second = rate;
    given += fmt::format("{}{:g} TFLOP/s", given.empty() ? "" : ", ", rate / 1e12);
  }
  if (given.empty())
    q.assumed.push_back("speeds of " + q.speeds.name);
  else if (o.bandwidth.empty() || o.flops.empty())
    q.assumed.push_back(
        fmt::format("{} of {}", o.flops.empty() ? "FLOP/s" : "bandwidth", q.speeds.name));
  if (!given.empty())
    q.speeds.name = o.bandwidth.empty() || o.flops.empty()
                        ? fmt::format("{}, else {}", given, q.speeds.name)
                        : given;
}

}  // namespace

std::vector<std::int64_t> read_document_lengths(const std::string& path, std::int64_t length,
                                                std::vector<std::string>& notes) {
  const std::vector<std::int64_t> listed = read_lines(path);
  std::vector<std::int64_t> documents;
  std::int64_t left = length;
  std::size_t next = 0;
  for (; left > 0; ++next) {
    documents.push_back(std::min(left, listed[next % listed.size()]));
    left -= documents.back();
  }
  const auto counted = [](std::size_t n) {
    return fmt::format("{} document{}", n, n == 1 ? "" : "s");
  };
  const std::int64_t sum = std::accumulate(listed.begin(), listed.end(), std::int64_t{0});
  if (sum < length)
    notes.push_back(
        fmt::format("{}: {} of {} tokens in all, and the sequence has {}: the list was "
                    "repeated until it was full",
                    path, counted(listed.size()), sum, length));
  if (sum > length)
    notes.push_back(
        fmt::format("{}: {} of {} tokens in all, and the sequence has {}: the first {} "
                    "were taken, the last of them cut to {} tokens",
                    path, counted(listed.size()), sum, length, documents.size(), documents.back()));
  return documents;
}

AttentionQuestion read_question(const AttentionOptions& o) {
  if (o.config.empty() && o.sequence_length.empty())
    throw Error(ExitCode::kUsage,
                {.what = "neither a configuration nor a sequence length was given",
                 .fix = "farspan inspect attention CONFIG.yaml --ranks 8, or farspan inspect "
                        "attention --sequence-length 1M --ranks 32"});
  if (o.ranks.empty())
    throw Error(ExitCode::kUsage, {.what = "--ranks is missing: how many ranks share the sequence",
                                   .fix = "give --ranks 8, for example"});
  read_count("--ranks", o.ranks, 1, kMaxRanks);
  AttentionQuestion q;
  const config::RunConfig config = resolved(o, q);
  const std::int64_t tokens =
      config.train().sequence_length() *
      (o.doc_lengths.empty() && !o.config.empty() ? config.train().micro_batch() : 1);
  if (tokens > kMaxTokens)
    throw Error(ExitCode::kUsage,
                {.what = fmt::format("{} tokens at once are more than inspect plans ({})", tokens,
                                     kMaxTokens),
                 .where = o.sequence_length.empty() ? o.config : "--sequence-length",
                 .fix = "give a shorter sequence, or a smaller train.micro_batch"});
  set_documents(o, config, q);
  if (config.parallel().invariant()) q.problem.block = kInvariantBlock;
  set_speeds(o, config, q);
  q.choose_layout = config.parallel().layout() == "auto";
  q.choose_attention = config.parallel().attention() == "auto";
  q.choose_ulysses = config.parallel().ulysses() == 0;
  return q;
}

}  // namespace farspan::app
