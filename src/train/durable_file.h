// Small files that a kill or a full disk cannot spoil: lines that are appended whole, and files
// that are replaced whole.
//
//   AppendFile file(folder / "metrics.jsonl");
//   file.append("{...}\n");                       // there entirely, or not at all (disk full)
//   replace_file(folder / "summary.json", text);  // the old content or the new, never a mixture
//
// Errors: those of io/durable.h: Error(kExhausted) when the disk or the quota is full,
// Error(kUsage) for a path that cannot be written, both naming the file and what to do.
#pragma once

#include <filesystem>
#include <string_view>

#include "io/durable.h"

namespace farspan {

// A file to which each append is one write(2): what a call has written survives a SIGKILL of the
// process, and a reader sees whole appends only. Creates the file; keeps what is in it.
class AppendFile {
 public:
  explicit AppendFile(std::filesystem::path path);

  // On failure the file keeps its former length.
  void append(std::string_view bytes);
  // To the disk itself (fsync), for what must survive a power cut.
  void sync();
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  io::FileDescriptor file_;
};

// A file under construction beside its final name; commit() puts it in place by fsync, rename and
// fsync of the folder. Without commit() nothing remains of it.
class ReplacementFile {
 public:
  explicit ReplacementFile(std::filesystem::path final_path);
  ReplacementFile(const ReplacementFile&) = delete;
  ReplacementFile& operator=(const ReplacementFile&) = delete;
  ~ReplacementFile();

  void append(std::string_view bytes) { file_.append(bytes); }
  void commit();

 private:
  std::filesystem::path final_path_;
  AppendFile file_;
  bool committed_ = false;
};

void replace_file(const std::filesystem::path& path, std::string_view content);

}  // namespace farspan
