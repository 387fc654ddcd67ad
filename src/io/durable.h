// The POSIX steps of a durable write, each failing with the errno of the step that failed.
//
//   write_file(folder / "manifest.pb", bytes);     // created, written, fsynced
//   sync_directory(folder);                        // its entries survive a power cut
//   rename_path(folder, final_name);
//
// Errors are farspan::Error: a full disk or quota is kExhausted, a path that cannot be written is
// kUsage, bytes that cannot be read are kBadData.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "core/error.h"

namespace farspan::io {

// Move-only owner of a file descriptor.
class FileDescriptor {
 public:
  FileDescriptor() = default;
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(other.release()) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept;
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  ~FileDescriptor();

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  int release() {
    const int fd = fd_;
    fd_ = -1;
    return fd;
  }

 private:
  int fd_ = -1;
};

// What to tell a user whose write failed. `needed` bytes (0: unknown) and what the file system has
// left are part of the text when space ran out.
Error write_error(int errnum, std::string_view action, const std::filesystem::path& path,
                  std::int64_t needed = 0);
Error read_error(int errnum, std::string_view action, const std::filesystem::path& path);

// A new file for reading and writing; one of that name must not exist.
FileDescriptor create_file(const std::filesystem::path& path);
FileDescriptor open_for_reading(const std::filesystem::path& path);
std::int64_t size_of_file(const FileDescriptor& file, const std::filesystem::path& path);

// Asks the file system to set `bytes` aside, so that a full disk is found before anything is
// written. File systems that cannot do that are left alone.
void reserve(const FileDescriptor& file, const std::filesystem::path& path, std::int64_t bytes);

void sync_file(const FileDescriptor& file, const std::filesystem::path& path);
void sync_directory(const std::filesystem::path& folder);

// Creates `path` (which must not exist) with `bytes`, fsynced.
void write_file(const std::filesystem::path& path, std::string_view bytes);
// The whole of a regular file; larger than `limit` bytes is an error.
std::string read_file(const std::filesystem::path& path, std::int64_t limit);

void make_directory(const std::filesystem::path& folder);    // must not exist; parent must
void make_directories(const std::filesystem::path& folder);  // with parents; may exist
void rename_path(const std::filesystem::path& from, const std::filesystem::path& to);
// Puts `from` in the place of `to`, which exists, so that at no moment `to` is absent; the old `to`
// is then called `from`. False where the file system cannot (it has no RENAME_EXCHANGE).
bool exchange_paths(const std::filesystem::path& from, const std::filesystem::path& to);

}  // namespace farspan::io
