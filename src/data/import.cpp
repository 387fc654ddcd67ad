#include "data/import.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "data/line_reader.h"

namespace farspan {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr std::size_t kPieceTokens = 65536;
constexpr std::int64_t kProgressBytes = std::int64_t{4} << 20;
constexpr std::int64_t kMaxId = std::numeric_limits<std::int32_t>::max();

[[noreturn]] void bad(std::string where, std::string what, std::string fix) {
  throw Error(ExitCode::kBadData,
              {.what = std::move(what), .where = std::move(where), .fix = std::move(fix)});
}

bool is_blank(std::string_view line) {
  return line.find_first_not_of(" \t\r\v\f") == std::string_view::npos;
}

class Importer {
 public:
  Importer(const std::vector<std::string>& inputs, const ImportOptions& options,
           const std::function<void(const ImportProgress&)>& on_progress)
      : inputs_(inputs), options_(options), on_progress_(on_progress) {
    choose_tokenizer();
    check_inputs();
  }

  ImportReport run() {
    sink_.emplace(SinkOptions{.out = options_.out,
                              .split = options_.split,
                              .tokenizer = info_,
                              .sources = source_names(),
                              .overwrite = options_.overwrite});
    for (const std::string& input : inputs_) {
      const std::int64_t before = progress_.documents;
      read_input(input);
      if (progress_.documents == before)
        bad(input, "the input holds no text: it is empty or blank",
            "leave it out, or check that it is the file meant");
      ++source_;
    }
    ImportReport report{
        .stores = sink_->finish(), .bytes = progress_.bytes, .empty_documents = empty_documents_};
    if (on_progress_) on_progress_(progress_);
    return report;
  }

 private:
  void choose_tokenizer() {
    if (options_.format != ImportFormat::kTokens) {
      if (options_.vocab_size != 0)
        throw Error(ExitCode::kUsage, {.what = "the tokenizer decides the vocabulary of text",
                                       .where = "--vocab-size",
                                       .fix = "leave it out; it belongs to --format tokens"});
      tokenizer_ = make_tokenizer(options_.tokenizer.empty() ? "bytes" : options_.tokenizer);
      info_ = tokenizer_->info();
      // The only tokenizer so far; others will need whole documents here.
      FARSPAN_CHECK(tokenizer_->splits_anywhere());
      return;
    }
    if (!options_.tokenizer.empty()) info_ = make_tokenizer(options_.tokenizer)->info();
    if (options_.vocab_size == 0) return;
    if (options_.vocab_size < info_.vocab_size || options_.vocab_size > kMaxId)
      throw Error(
          ExitCode::kUsage,
          {.what = fmt::format("a vocabulary of {} is impossible here", options_.vocab_size),
           .where = "--vocab-size",
           .fix = fmt::format("give at least {} (at most 2^31 - 1), or leave it out",
                              std::max<std::int64_t>(1, info_.vocab_size))});
    info_.vocab_size = options_.vocab_size;
  }

  // Before anything is written: a wrong path is known at once, not after hours.
  void check_inputs() {
    FARSPAN_CHECK(!inputs_.empty());
    bool sizes_known = true;
    for (const std::string& input : inputs_) {
      LineReader readable(input, {});
      std::error_code ec;
      if (fs::equivalent(input, options_.out, ec))
        throw Error(ExitCode::kUsage, {.what = "the output is one of the inputs",
                                       .where = input,
                                       .fix = "choose another --out"});
      const bool regular = fs::is_regular_file(input, ec);
      sizes_known &= regular;
      if (regular) progress_.total_bytes += static_cast<std::int64_t>(fs::file_size(input));
    }
    if (!sizes_known) progress_.total_bytes = 0;
  }

  // Without folders: equal text gives an equal store wherever it lies.
  std::vector<std::string> source_names() const {
    std::vector<std::string> out;
    for (const std::string& input : inputs_) out.push_back(fs::path(input).filename().string());
    return out;
  }

  void read_input(const std::string& input) {
    LineReader reader(input, [this](std::size_t bytes) {
      progress_.bytes += static_cast<std::int64_t>(bytes);
      if (!on_progress_ || progress_.bytes - reported_ < kProgressBytes) return;
      reported_ = progress_.bytes;
      on_progress_(progress_);
    });
    switch (options_.format) {
      case ImportFormat::kText:
        return read_text(reader);
      case ImportFormat::kJsonl:
        return read_jsonl(reader);
      case ImportFormat::kTokens:
        return read_tokens(reader);
    }
  }

  // --- text ---

  void add_text(std::string_view text) {
    while (!text.empty()) {
      const std::string_view part = text.substr(0, kPieceTokens);
      tokenizer_->encode(part, ids_);
      text.remove_prefix(part.size());
      if (ids_.size() >= kPieceTokens) flush();
    }
    document_has_text_ = true;
  }

  void flush() {
    sink_->append({.tokens = ids_});
    progress_.tokens += static_cast<std::int64_t>(ids_.size());
    ids_.clear();
  }

  void end_text() {
    if (!document_has_text_) return;
    ids_.push_back(info_.eos);
    flush();
    end_document();
    document_has_text_ = false;
  }

  void end_document() {
    sink_->end_document(source_);
    ++progress_.documents;
  }

  void read_text(LineReader& reader) {
    std::string_view part;
    if (options_.document == DocumentUnit::kFile) {
      while (reader.next_block(part)) add_text(part);
      return end_text();
    }
    while (reader.next_line(part)) {
      if (is_blank(part)) {
        end_text();
        continue;
      }
      if (document_has_text_) add_text("\n");
      add_text(part);
      if (options_.document == DocumentUnit::kLine) end_text();
    }
    end_text();
  }

  // --- JSON lines ---

  static Json parse_object(std::string_view line, const LineReader& reader) {
    try {
      Json json = Json::parse(line);
      if (json.is_object()) return json;
    } catch (const Json::parse_error& error) {
      std::string_view why = error.what();
      if (const auto colon = why.find(": "); colon != std::string_view::npos)
        why.remove_prefix(colon + 2);
      bad(fmt::format("{}:{}", reader.where(), error.byte),
          fmt::format("this line is not valid JSON in UTF-8: {}", why),
          "correct or remove the line (file:line:byte above); a last line cut short means that "
          "the file is truncated");
    }
    bad(reader.where(), "this line is valid JSON, but not an object",
        "write one object {...} on each line");
  }

  void read_jsonl(LineReader& reader) {
    std::string_view line;
    while (reader.next_line(line)) {
      if (is_blank(line)) continue;
      const Json json = parse_object(line, reader);
      const auto it = json.find(options_.field);
      if (it == json.end() || !it->is_string())
        bad(reader.where(),
            fmt::format("the field `{}` {}", options_.field,
                        it == json.end() ? "is missing" : "is not a string"),
            "name the field that holds the text with --field");
      const auto& text = it->get_ref<const std::string&>();
      if (text.empty()) {
        ++empty_documents_;
        continue;
      }
      add_text(text);
      end_text();
    }
  }

  // --- tokens ---

  // A list of integers in [0, limit), or -100 where `label`. Empty when the key is absent.
  static std::vector<std::int32_t> integers(const Json& json, const char* key, std::int64_t limit,
                                            const LineReader& reader, bool label = false) {
    const auto it = json.find(key);
    if (it == json.end() || it->is_null()) return {};
    if (!it->is_array())
      bad(reader.where(), fmt::format("`{}` is not a list", key),
          "write a flat list of integers, one document on each line");
    std::vector<std::int32_t> out;
    out.reserve(it->size());
    for (const Json& value : *it) {
      const bool whole = value.is_number_integer() &&
                         !(value.is_number_unsigned() &&
                           value.get<std::uint64_t>() > static_cast<std::uint64_t>(kMaxId));
      const std::int64_t v = whole ? value.get<std::int64_t>() : -1;
      if (!whole || ((v < 0 || v >= limit) && !(label && v == kIgnoreLabel)))
        bad(fmt::format("{}, {}[{}]", reader.where(), key, out.size()),
            fmt::format("{} is not {}", value.dump(),
                        label ? fmt::format("a label: -100 or an id in 0..{}", limit - 1)
                              : fmt::format("a whole number in 0..{}", limit - 1)),
            limit == kMaxId ? "correct the line"
                            : "correct the line, or give the vocabulary that the ids were made "
                              "with (--vocab-size N; without --tokenizer and --vocab-size it is "
                              "the largest id + 1)");
      out.push_back(static_cast<std::int32_t>(v));
    }
    return out;
  }

  void read_tokens(LineReader& reader) {
    const std::int64_t vocab = info_.vocab_size > 0 ? info_.vocab_size : kMaxId;
    std::string_view line;
    while (reader.next_line(line)) {
      if (is_blank(line)) continue;
      const Json json = parse_object(line, reader);
      if (!json.contains("input_ids"))
        bad(reader.where(), "`input_ids` is missing", "write {\"input_ids\": [...]} on each line");
      const auto ids = integers(json, "input_ids", vocab, reader);
      const auto labels = integers(json, "labels", vocab, reader, /*label=*/true);
      const auto positions = integers(json, "position_ids", kMaxId, reader);
      const auto segments = integers(json, "segment_ids", kMaxId, reader);
      for (const auto& [key, column] :
           {std::pair<const char*, const std::vector<std::int32_t>&>{"labels", labels},
            {"position_ids", positions},
            {"segment_ids", segments}})
        if (!column.empty() && column.size() != ids.size())
          bad(reader.where(),
              fmt::format("`{}` has {} values for {} input_ids", key, column.size(), ids.size()),
              "give every list of a line the same length");
      if (!std::is_sorted(segments.begin(), segments.end()))
        bad(reader.where(), "`segment_ids` go down",
            "number the segments of a document in ascending order");
      if (ids.empty()) {
        ++empty_documents_;
        continue;
      }
      sink_->append(
          {.tokens = ids, .labels = labels, .position_ids = positions, .segment_ids = segments});
      progress_.tokens += static_cast<std::int64_t>(ids.size());
      end_document();
    }
  }

  const std::vector<std::string>& inputs_;
  const ImportOptions& options_;
  const std::function<void(const ImportProgress&)>& on_progress_;
  std::unique_ptr<Tokenizer> tokenizer_;
  TokenizerInfo info_;
  std::optional<DocumentSink> sink_;
  ImportProgress progress_;
  std::int64_t reported_ = 0;
  std::int64_t empty_documents_ = 0;
  std::uint32_t source_ = 0;
  std::vector<std::int32_t> ids_;  // of the document under way, not yet in the sink
  bool document_has_text_ = false;
};

}  // namespace

ImportFormat parse_import_format(std::string_view text) {
  if (text == "text") return ImportFormat::kText;
  if (text == "jsonl") return ImportFormat::kJsonl;
  if (text == "tokens") return ImportFormat::kTokens;
  const bool planned = text == "megatron" || text == "llmc";
  throw Error(ExitCode::kUsage,
              {.what = fmt::format("the format `{}` {}", text,
                                   planned ? "cannot be read yet by this build" : "is not known"),
               .where = "--format",
               .fix = "use text, jsonl or tokens"});
}

DocumentUnit parse_document_unit(std::string_view text) {
  if (text == "line") return DocumentUnit::kLine;
  if (text == "paragraph") return DocumentUnit::kParagraph;
  if (text == "file") return DocumentUnit::kFile;
  throw Error(ExitCode::kUsage, {.what = fmt::format("`{}` is no kind of document", text),
                                 .where = "--document",
                                 .fix = "use line, paragraph or file"});
}

ImportReport import_files(const std::vector<std::string>& inputs, const ImportOptions& options,
                          const std::function<void(const ImportProgress&)>& on_progress) {
  return Importer(inputs, options, on_progress).run();
}

}  // namespace farspan
