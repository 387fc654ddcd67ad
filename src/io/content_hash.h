// XXH3-128 (Collet, xxHash 0.8) of a stream of bytes, as 32 lower-case hex digits. It detects
// accidents, not attacks.
//
//   ContentHash hash;
//   hash.update(bytes);
//   std::string digits = hash.hex();      // of all bytes so far
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace farspan::io {

class ContentHash {
 public:
  ContentHash();
  ~ContentHash();
  ContentHash(ContentHash&&) noexcept;
  ContentHash& operator=(ContentHash&&) noexcept;

  void update(std::span<const std::byte> bytes);
  void update(std::string_view text);
  void update(std::int64_t value);  // eight bytes, little-endian
  std::string hex() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string hash_of(std::string_view bytes);

struct FileHash {
  std::int64_t bytes = 0;
  std::string xxh3_128;
};
// Reads the file once. Throws Error(kBadData) when it cannot be read.
FileHash hash_file(const std::filesystem::path& path);

// Whether `text` is 32 lower-case hex digits.
bool is_hash(std::string_view text);

}  // namespace farspan::io
