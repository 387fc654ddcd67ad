// Durable files: hashing, syncing, renaming, with errors that name the file and what to do.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"

namespace farspan {

// 32 hex digits of XXH3-128 over memory.
std::string hash_text(std::string_view bytes);

struct FileHash {
  std::int64_t bytes = 0;
  std::string xxh3_128{};             // 32 hex digits, of the whole file
  std::vector<std::uint64_t> blocks;  // XXH3-64 of each block of block_bytes
};
// Reads the file once. `block_bytes` 0: no block hashes. Throws Error(kBadData) when unreadable.
FileHash hash_file(const std::filesystem::path& path, std::int64_t block_bytes);

// A failed system call on `path` as an Error: disk full, quota and file-size limits are kExhausted,
// all else kUsage. `action` reads "write", "create", "rename".
[[nodiscard]] Error system_error(int error_number, std::string_view action,
                                 const std::filesystem::path& path);

// Writes a whole file and syncs it to disk.
void write_file_synced(const std::filesystem::path& path, std::string_view content);
// fsync of a file or folder.
void sync_path(const std::filesystem::path& path);
// rename, then fsync of the folder.
void rename_synced(const std::filesystem::path& from, const std::filesystem::path& to);

// The whole file; throws Error(kBadData) when unreadable.
std::string read_file(const std::filesystem::path& path);

}  // namespace farspan
