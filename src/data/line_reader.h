// A file in blocks or lines, with the numbers that error messages need.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace farspan {

class LineReader {
 public:
  // Throws Error(kBadData) when the input is missing, a folder or unreadable. `on_bytes` is told of
  // every block read.
  LineReader(std::filesystem::path path, std::function<void(std::size_t)> on_bytes);
  ~LineReader();
  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;

  // The next line without its end ("\n" or "\r\n"), valid until the next call; false at the end. A
  // byte order mark at the start of the file is skipped. Throws Error(kBadData) for a line longer
  // than 1 GiB.
  bool next_line(std::string_view& line);
  // The next part of the file, up to 1 MiB; false at the end. Not to be mixed with next_line.
  bool next_block(std::string_view& block);

  std::int64_t line_number() const { return line_number_; }  // of the last line, from 1
  std::string where() const;                                 // "a.jsonl:12"

 private:
  bool fill();  // reads one block behind what is buffered; false at the end of the file

  std::filesystem::path path_;
  std::function<void(std::size_t)> on_bytes_;
  int fd_ = -1;
  std::vector<char> buffer_;
  std::size_t begin_ = 0, end_ = 0;  // unread part of the buffer
  std::int64_t line_number_ = 0;
  bool at_start_ = true;
};

}  // namespace farspan
