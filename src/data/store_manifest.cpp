#include "data/store_manifest.h"

#include <array>
#include <bit>
#include <fstream>
#include <nlohmann/json.hpp>

#include "data/files.h"

namespace farspan {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr std::string_view kFormat = "farspan token store manifest";
constexpr int kVersion = 1;
constexpr std::string_view kSelfKey = "\"self_xxh3_128\": \"";
constexpr std::size_t kHashDigits = 32;
constexpr std::string_view kReimport =
    "make the store again with `farspan data import --force`, or copy it with its manifest again "
    "from where it is intact";

[[noreturn]] void bad(const fs::path& path, std::string what,
                      std::string fix = std::string(kReimport)) {
  throw Error(ExitCode::kBadData,
              {.what = std::move(what), .where = path.string(), .fix = std::move(fix)});
}

// At most 1024 blocks, each at least 64 KiB.
std::int64_t block_bytes_for(std::int64_t bytes) {
  const auto share = static_cast<std::uint64_t>((bytes + 1023) / 1024);
  return static_cast<std::int64_t>(std::max<std::uint64_t>(65536, std::bit_ceil(share)));
}

bool starts_as_hdf5(const fs::path& path) {
  constexpr std::string_view kSignature("\x89HDF\r\n\x1a\n", 8);
  std::array<char, 8> head{};
  std::ifstream in(path, std::ios::binary);
  in.read(head.data(), head.size());
  return in.gcount() == 8 && std::string_view(head.data(), 8) == kSignature;
}

void check_present(const fs::path& store) {
  std::error_code ec;
  const auto status = fs::status(store, ec);
  if (status.type() == fs::file_type::not_found)
    bad(store, "there is no such token store",
        "check the path, or make the store with `farspan data import` or `farspan data synth`");
  if (ec) bad(store, "cannot look at the token store: " + ec.message(), "check its permissions");
  if (status.type() == fs::file_type::directory)
    bad(store, "this is a folder, not a token store", "name the .h5 file inside it");
  if (fs::file_size(store, ec) == 0 && !ec) bad(store, "the token store is empty (0 bytes)");
}

Json parse_verified(const fs::path& path) {
  std::string text = read_file(path);
  if (text.empty()) bad(path, "the manifest of the token store is empty");
  const std::size_t key = text.rfind(kSelfKey);
  if (key == std::string::npos || key + kSelfKey.size() + kHashDigits > text.size())
    bad(path, "the manifest is truncated or not one of Farspan's: it has no hash of itself");
  const std::size_t at = key + kSelfKey.size();
  const std::string stored = text.substr(at, kHashDigits);
  text.replace(at, kHashDigits, kHashDigits, '0');
  if (hash_text(text) != stored)
    bad(path, "the manifest is damaged: its text does not match its own hash");
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || json.value("format", "") != kFormat)
    bad(path, "this is not the manifest of a token store");
  if (json.value("version", 0) != kVersion)
    bad(path, fmt::format("the manifest has version {}, this build reads version {}",
                          json.value("version", 0), kVersion));
  return json;
}

// "bytes 65536..131071, 262144..327679 and 3 more ranges"
std::string damaged_ranges(const fs::path& store, const Json& json) {
  const auto block_bytes = json.at("block_bytes").get<std::int64_t>();
  const FileHash found = hash_file(store, block_bytes);
  const auto& expected = json.at("block_xxh3_64");
  std::string text;
  int shown = 0, more = 0;
  for (std::size_t i = 0; i < found.blocks.size() && i < expected.size(); ++i) {
    if (fmt::format("{:016x}", found.blocks[i]) == expected[i].get<std::string>()) continue;
    if (shown == 4) {
      ++more;
      continue;
    }
    const std::int64_t begin = static_cast<std::int64_t>(i) * block_bytes;
    text += fmt::format("{}{}..{}", shown++ ? ", " : "bytes ", begin,
                        std::min(begin + block_bytes, found.bytes) - 1);
  }
  if (more > 0) text += fmt::format(" and {} more ranges", more);
  return text;
}

// Checks the file against a manifest's size and, when `hash`, content.
StoreInfo check_against(const fs::path& store, const Json& json, bool hash) {
  StoreInfo info;
  info.file_bytes = json.at("bytes").get<std::int64_t>();
  info.file_hash = json.at("xxh3_128").get<std::string>();
  info.num_tokens = json.at("tokens").get<std::int64_t>();
  info.num_documents = json.at("documents").get<std::int64_t>();
  info.tokenizer.vocab_size = json.at("vocab_size").get<std::int64_t>();
  info.tokenizer.name = json.at("tokenizer").get<std::string>();
  const auto bytes = static_cast<std::int64_t>(fs::file_size(store));
  if (bytes < info.file_bytes)
    bad(store, fmt::format("the token store is truncated at byte {}: its manifest says {} bytes",
                           bytes, info.file_bytes));
  if (bytes > info.file_bytes)
    bad(store, fmt::format("the token store has {} bytes, {} more than its manifest says", bytes,
                           bytes - info.file_bytes));
  if (hash && hash_file(store, 0).xxh3_128 != info.file_hash)
    bad(store, fmt::format("the token store is damaged: {} differ from what its manifest says",
                           damaged_ranges(store, json)));
  return info;
}

}  // namespace

fs::path manifest_path(const fs::path& store) { return store.string() + ".manifest.json"; }

fs::path next_manifest_path(const fs::path& store) {
  return manifest_path(store).string() + ".next";
}

std::string make_manifest(const fs::path& file, const std::string& final_name, StoreInfo& info) {
  const std::int64_t block_bytes = block_bytes_for(static_cast<std::int64_t>(fs::file_size(file)));
  const FileHash hash = hash_file(file, block_bytes);
  info.file_bytes = hash.bytes;
  info.file_hash = hash.xxh3_128;
  Json json;
  json["format"] = kFormat;
  json["version"] = kVersion;
  json["file"] = final_name;
  json["bytes"] = hash.bytes;
  json["xxh3_128"] = hash.xxh3_128;
  json["tokens"] = info.num_tokens;
  json["documents"] = info.num_documents;
  json["vocab_size"] = info.tokenizer.vocab_size;
  json["tokenizer"] = info.tokenizer.name;
  json["tokenizer_hash"] = info.tokenizer.hash;
  json["block_bytes"] = block_bytes;
  Json blocks = Json::array();
  for (std::uint64_t block : hash.blocks) blocks.push_back(fmt::format("{:016x}", block));
  json["block_xxh3_64"] = std::move(blocks);
  json["self_xxh3_128"] = std::string(kHashDigits, '0');
  std::string text = json.dump(1) + "\n";
  const std::size_t at = text.rfind(kSelfKey) + kSelfKey.size();
  text.replace(at, kHashDigits, hash_text(text));
  return text;
}

StoreInfo check_manifest(const fs::path& store, bool hash) {
  check_present(store);
  const fs::path path = manifest_path(store);
  if (fs::exists(next_manifest_path(store))) {
    // A replacement was cut short: the store may be the new one already.
    try {
      return check_against(store, parse_verified(next_manifest_path(store)), /*hash=*/true);
    } catch (const Error&) {
      // Then it is the old one, which its own manifest describes.
    }
  }
  if (!fs::exists(path)) {
    if (!starts_as_hdf5(store))
      bad(store, "this is not a token store: it is no HDF5 file and has no manifest",
          "name a store made by `farspan data import` or `farspan data synth`");
    bad(store, fmt::format("the manifest {} is missing: it was not copied along with the store",
                           path.filename().string()));
  }
  return check_against(store, parse_verified(path), hash);
}

bool looks_like_token_store(const fs::path& path) noexcept {
  try {
    return fs::is_regular_file(path) && (starts_as_hdf5(path) || fs::exists(manifest_path(path)));
  } catch (...) {
    return false;
  }
}

std::string data_fingerprint(std::span<const TokenStore* const> stores) {
  std::string text;
  for (const TokenStore* store : stores) text += store->info().file_hash + "\n";
  return hash_text(text);
}

}  // namespace farspan
