#include "data/line_reader.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "core/error.h"

namespace farspan {
namespace {

constexpr std::size_t kBlock = std::size_t{1} << 20;
constexpr std::size_t kLongestLine = std::size_t{1} << 30;
constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";

[[noreturn]] void bad_input(const std::filesystem::path& path, int error_number) {
  throw Error(ExitCode::kBadData,
              {.what = fmt::format("cannot read the input: {}", std::strerror(error_number)),
               .where = path.string(),
               .fix = error_number == EISDIR ? "name the files inside the folder"
                                             : "check the path and its permissions"});
}

}  // namespace

LineReader::LineReader(std::filesystem::path path, std::function<void(std::size_t)> on_bytes)
    : path_(std::move(path)), on_bytes_(std::move(on_bytes)) {
  if (std::filesystem::is_directory(path_)) bad_input(path_, EISDIR);
  fd_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd_ < 0) bad_input(path_, errno);
}

LineReader::~LineReader() {
  if (fd_ >= 0) ::close(fd_);
}

bool LineReader::fill() {
  if (begin_ > 0) {
    std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
  }
  if (buffer_.size() < end_ + kBlock) buffer_.resize(std::max(end_ + kBlock, 2 * buffer_.size()));
  ssize_t n = 0;
  do {
    n = ::read(fd_, buffer_.data() + end_, kBlock);
  } while (n < 0 && errno == EINTR);
  if (n < 0) bad_input(path_, errno);
  if (on_bytes_ && n > 0) on_bytes_(static_cast<std::size_t>(n));
  end_ += static_cast<std::size_t>(n);
  if (at_start_ && (end_ >= kByteOrderMark.size() || n == 0)) {
    at_start_ = false;
    if (std::string_view(buffer_.data(), end_).starts_with(kByteOrderMark))
      begin_ = kByteOrderMark.size();
  }
  return n > 0;
}

bool LineReader::next_line(std::string_view& line) {
  std::size_t searched = 0;
  for (;;) {
    const std::string_view unread(buffer_.data() + begin_, end_ - begin_);
    const std::size_t newline = at_start_ ? std::string_view::npos : unread.find('\n', searched);
    if (newline != std::string_view::npos) {
      line = unread.substr(0, newline);
      begin_ += newline + 1;
      break;
    }
    searched = at_start_ ? 0 : unread.size();
    if (unread.size() > kLongestLine)
      throw Error(ExitCode::kBadData,
                  {.what = "the line is longer than 1 GiB",
                   .where = fmt::format("{}:{}", path_.string(), line_number_ + 1),
                   .fix = "split it, or import plain text with --document file"});
    const bool was_at_start = at_start_;  // a file of a byte or two: look again
    if (fill() || was_at_start) continue;
    if (begin_ == end_) return false;
    line = std::string_view(buffer_.data() + begin_, end_ - begin_);
    begin_ = end_;
    break;
  }
  ++line_number_;
  if (line.ends_with('\r')) line.remove_suffix(1);
  return true;
}

bool LineReader::next_block(std::string_view& block) {
  begin_ = end_;
  while (fill())
    if (begin_ < end_ && !at_start_) {
      block = std::string_view(buffer_.data() + begin_, end_ - begin_);
      return true;
    }
  block = std::string_view(buffer_.data() + begin_, end_ - begin_);
  return !block.empty();
}

std::string LineReader::where() const { return fmt::format("{}:{}", path_.string(), line_number_); }

}  // namespace farspan
