// Text and token files into token stores, streaming: a document longer than memory is possible in
// `text` with documents = file, a line of JSON must fit.
//
//   ImportReport r = import_files({"a.txt"}, {.format = ImportFormat::kText,
//                                             .out = "data/a.h5"}, on_progress);
//
// Errors: kBadData naming file and line (missing or empty input, bad JSON or UTF-8, ids outside the
// vocabulary), kUsage (existing output, folder that cannot be written), kExhausted (disk full).
// Whatever is thrown, no partial output stays.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/document_sink.h"

namespace farspan {

enum class ImportFormat {
  kText,    // bytes of text
  kJsonl,   // one JSON object a line, its text in `field`
  kTokens,  // one JSON object a line: input_ids, optional labels, position_ids, segment_ids
};
enum class DocumentUnit {
  kLine,       // every line that is not blank
  kParagraph,  // lines up to a blank one
  kFile,       // a whole input, byte for byte
};

// "text", "jsonl", "tokens"; throws Error(kUsage), also for formats of other programs that are not
// built yet (megatron, llmc).
ImportFormat parse_import_format(std::string_view text);
// "line", "paragraph", "file"; throws Error(kUsage).
DocumentUnit parse_document_unit(std::string_view text);

struct ImportOptions {
  ImportFormat format = ImportFormat::kText;
  // Text and jsonl: `bytes` when empty. Tokens: whose ids they are; nobody's when empty.
  std::string tokenizer{};
  DocumentUnit document = DocumentUnit::kParagraph;  // text
  std::string field = "text";                        // jsonl
  // Tokens: 0 takes the tokenizer's, or without one the largest id + 1.
  std::int64_t vocab_size = 0;
  std::filesystem::path out;
  std::optional<Split> split{};
  bool overwrite = false;
};

struct ImportProgress {
  std::int64_t bytes = 0;
  std::int64_t total_bytes = 0;  // 0: not known (a pipe)
  std::int64_t documents = 0;
  std::int64_t tokens = 0;
};

struct ImportReport {
  SinkReport stores;
  std::int64_t bytes = 0;
  std::int64_t empty_documents = 0;  // without text or tokens: not stored
};

// `on_progress` is called every 4 MiB of input, and at the end.
ImportReport import_files(const std::vector<std::string>& inputs, const ImportOptions& options,
                          const std::function<void(const ImportProgress&)>& on_progress = {});

}  // namespace farspan
