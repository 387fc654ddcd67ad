// Tokens on disk: one HDF5 file of 1-D datasets, and a manifest with its size and hash beside it.
//
//   STORE.h5                  tokens (u16 or u32, by vocabulary), doc_offsets u64 (documents + 1),
//                             optional labels i32, position_ids u32, segment_ids u32 (per token),
//                             source_id u32 (per document), sources (their names, JSON text).
//                             Every dataset is chunked with Fletcher32. Attributes of the root:
//                             format, format_version, tokenizer, tokenizer_hash, vocab_size, bos,
//                             eos, pad, unk, num_tokens, num_documents.
//   STORE.h5.manifest.json    size and XXH3-128 of the file (data/store_manifest.h)
//
//   TokenStoreWriter writer("data/a.h5", {.tokenizer = byte_tokenizer_info()});
//   writer.append({.tokens = ids});                  // any number of times per document
//   writer.end_document();
//   StoreInfo info = writer.finish();                // or the destructor removes what was written
//
//   TokenStore store("data/a.h5");                   // throws Error(kBadData): what, where, fix
//   store.read_tokens(begin, out);                   // any range of the token stream
//
// `labels` are aligned with tokens as in transformers: labels[t] is predicted from token t-1, -100
// is not scored. Loaders shift (data/packing.h).
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "data/tokenizer.h"

namespace farspan {

inline constexpr int kTokenStoreVersion = 1;
inline constexpr std::int32_t kIgnoreLabel = -100;

struct StoreInfo {
  TokenizerInfo tokenizer;  // vocab_size: every id in the store is smaller
  std::int64_t num_tokens = 0;
  std::int64_t num_documents = 0;
  int token_bytes = 2;  // 2 or 4, on disk
  bool has_labels = false;
  bool has_position_ids = false;
  bool has_segment_ids = false;
  std::vector<std::string> sources{};  // names that source_id refers to; empty: none recorded
  std::int64_t file_bytes = 0;
  std::string file_hash{};  // XXH3-128, 32 hex digits, from the manifest
};

class TokenStore {
 public:
  enum class Verify {
    kHash,  // size and XXH3-128 of the whole file before HDF5 sees it (gigabytes per second)
    kSize,  // size only; each read is still checked (Fletcher32 per chunk, ids against vocabulary)
  };

  // Throws Error(kBadData) naming the file (and the offset where there is one) when it is missing,
  // empty, truncated, damaged, of another format or version, or without its manifest.
  explicit TokenStore(std::filesystem::path path, Verify verify = Verify::kHash);
  ~TokenStore();
  TokenStore(const TokenStore&) = delete;
  TokenStore& operator=(const TokenStore&) = delete;

  const std::filesystem::path& path() const { return path_; }
  const StoreInfo& info() const { return info_; }
  // First token of each document, and the end: num_documents + 1 values, ascending from 0.
  std::span<const std::uint64_t> doc_offsets() const { return doc_offsets_; }

  // Elements [begin, begin + out.size()) of a column. Throws Error(kBadData) naming file and token
  // when a chunk does not pass its checksum or an id lies outside the vocabulary. Thread-safe. The
  // optional columns CHECK that the store has them.
  void read_tokens(std::int64_t begin, std::span<std::int32_t> out) const;
  void read_labels(std::int64_t begin, std::span<std::int32_t> out) const;
  void read_position_ids(std::int64_t begin, std::span<std::int32_t> out) const;
  void read_segment_ids(std::int64_t begin, std::span<std::int32_t> out) const;
  // Index into info().sources of a document's input file; 0 when none are recorded.
  std::int64_t source_of_document(std::int64_t document) const;

  // Throws Error(kBadData) when a model with this vocabulary cannot take the store's ids.
  void check_vocabulary(std::int64_t model_vocab_size) const;
  // Reads every element of every column once; throws Error(kBadData) at the first that is wrong.
  void verify_content() const;

 private:
  struct Impl;
  void read_column(int column, std::int64_t begin, std::span<std::int32_t> out) const;

  std::filesystem::path path_;
  StoreInfo info_;
  std::vector<std::uint64_t> doc_offsets_;
  std::unique_ptr<Impl> impl_;
};

// A piece of one document; columns are empty or as long as `tokens`.
struct DocumentPiece {
  std::span<const std::int32_t> tokens{};
  std::span<const std::int32_t> labels{};
  std::span<const std::int32_t> position_ids{};
  std::span<const std::int32_t> segment_ids{};
};

class TokenStoreWriter {
 public:
  struct Options {
    TokenizerInfo tokenizer;  // vocab_size 0: largest id + 1, known at the end
    std::vector<std::string> sources{};
    bool overwrite = false;  // replace an existing store
  };
  // A document taken back from the end of the store.
  struct Document {
    std::vector<std::int32_t> tokens, labels, position_ids, segment_ids;  // empty where absent
    std::uint32_t source = 0;
    DocumentPiece piece() const { return {tokens, labels, position_ids, segment_ids}; }
  };

  // Creates the folder and PATH.tmp.PID. Throws Error(kUsage) when PATH exists (without overwrite)
  // or cannot be written.
  TokenStoreWriter(std::filesystem::path path, Options options);
  ~TokenStoreWriter();  // removes the temporary file unless committed
  TokenStoreWriter(const TokenStoreWriter&) = delete;
  TokenStoreWriter& operator=(const TokenStoreWriter&) = delete;

  // Adds tokens to the document being written. An optional column exists from the first piece that
  // brings it; tokens without it get what its absence means: labels = tokens, position_ids = offset
  // in the document, segment_ids = 0. Throws Error(kBadData) for an id outside the vocabulary,
  // Error(kExhausted) when the disk is full.
  void append(const DocumentPiece& piece);
  // Ends the document; one without tokens is not stored. `source` indexes Options::sources.
  void end_document(std::uint32_t source = 0);
  // Removes the last ended document from the store and returns it. CHECKs that there is one.
  Document take_last_document();

  std::int64_t num_tokens() const;  // of ended documents
  std::int64_t num_documents() const;

  // Completes, syncs and hashes the temporary files. Throws Error(kBadData) when nothing was
  // written, Error(kExhausted) when the disk is full.
  void prepare();
  // Renames the file and its manifest into place (after prepare()). Killed at any moment, the old
  // store or the new one is there and verifies.
  StoreInfo commit();
  StoreInfo finish() {
    prepare();
    return commit();
  }

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// True when the file starts as HDF5 does or has a store manifest beside it. Never throws.
bool looks_like_token_store(const std::filesystem::path& path) noexcept;

// XXH3-128 over the stores' file hashes in order, 32 hex digits: the same text gives the same
// fingerprint wherever it lies. Kept in checkpoints (TrainState.data_fingerprint).
std::string data_fingerprint(std::span<const TokenStore* const> stores);

}  // namespace farspan
