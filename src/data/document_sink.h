// Documents into one token store, or into two that are split by a hash of each document's content.
//
//   DocumentSink sink({.out = "data/kjv.train.h5", .split = Split{"val", 0.01}, ...});
//   sink.append({.tokens = ids});  sink.end_document();  ...
//   SinkReport report = sink.finish();      // data/kjv.train.h5 and data/kjv.val.h5
//
// `out` itself holds the training part; the other part lies beside it, named as split_path() says.
// Equal documents go to the same part (the hash is of their first 65,536 tokens), whatever the
// order of the inputs. Neither part is ever left empty: the last document of the other one moves
// over. Both files appear together, at the end.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/token_store.h"

namespace farspan {

struct Split {
  std::string name;  // "val"
  double share = 0;  // of documents, in (0, 1)
};

// "val=0.01". Throws Error(kUsage).
Split parse_split(std::string_view text);

// data/kjv.h5 and data/kjv.train.h5, split "val" -> data/kjv.val.h5
std::filesystem::path split_path(const std::filesystem::path& out, std::string_view name);

struct SinkOptions {
  std::filesystem::path out;
  std::optional<Split> split{};
  TokenizerInfo tokenizer;  // vocab_size 0: largest id + 1
  std::vector<std::string> sources{};
  bool overwrite = false;
};

struct SinkReport {
  struct Part {
    std::filesystem::path path;
    StoreInfo info;
  };
  std::vector<Part> parts;  // one, or two with a split
};

class DocumentSink {
 public:
  explicit DocumentSink(SinkOptions options);

  // As TokenStoreWriter::append and end_document.
  void append(const DocumentPiece& piece);
  void end_document(std::uint32_t source = 0);
  // Completes both files, then puts both in place. Throws Error(kBadData) when there is no document
  // (or only one to split).
  SinkReport finish();

 private:
  TokenStoreWriter& choose();
  void write_held();

  SinkOptions options_;
  std::vector<std::filesystem::path> paths_;
  std::vector<std::unique_ptr<TokenStoreWriter>> writers_;
  TokenStoreWriter* chosen_ = nullptr;  // of the document under way, once known
  // The beginning of a document, held until its part is known.
  struct Held {
    DocumentPiece piece() const { return {tokens, labels, position_ids, segment_ids}; }
    std::vector<std::int32_t> tokens, labels, position_ids, segment_ids;
  };
  std::vector<Held> held_;
  std::size_t held_tokens_ = 0;
};

}  // namespace farspan
