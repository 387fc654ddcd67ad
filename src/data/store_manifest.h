// STORE.h5.manifest.json: what a token store's file must be, byte for byte.
//
//   {"format": "farspan token store manifest", "version": 1, "file": "kjv.train.h5",
//    "bytes": 4400000, "xxh3_128": "...", "block_bytes": 65536, "block_xxh3_64": ["...", ...],
//    "tokens": ..., "documents": ..., "vocab_size": ..., "tokenizer": "bytes",
//    "self_xxh3_128": "..."}
//
// `self_xxh3_128` is the hash of this file's own bytes with its 32 digits set to 0, so damage to
// the manifest is found too. Blocks let an error name the damaged range of the store.
#pragma once

#include <filesystem>
#include <string>

#include "data/token_store.h"

namespace farspan {

std::filesystem::path manifest_path(const std::filesystem::path& store);
// STORE.h5.manifest.json.next: put in place before a store is replaced and renamed to the manifest
// after, so that the store verifies by one of the two whenever the replacement is cut short.
std::filesystem::path next_manifest_path(const std::filesystem::path& store);

// The manifest's text for the store file at `file`, which will be named `final_name`. Hashes it.
// Fills info.file_bytes and info.file_hash.
std::string make_manifest(const std::filesystem::path& file, const std::string& final_name,
                          StoreInfo& info);

// Checks that `store` is the file that its manifest describes: present, not empty, of that size
// and, when `hash`, of that content. Returns the counts of the manifest (tokenizer name and
// vocabulary, tokens, documents, file_bytes, file_hash). Throws Error(kBadData).
StoreInfo check_manifest(const std::filesystem::path& store, bool hash);

}  // namespace farspan
