#include "train/durable_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "core/error.h"

namespace farspan {
namespace {

namespace fs = std::filesystem;

fs::path temporary_beside(const fs::path& path) {
  fs::path out = path;
  out += ".tmp";
  std::error_code ignored;
  fs::remove(out, ignored);  // of a process that was killed before it could put it in place
  return out;
}

}  // namespace

AppendFile::AppendFile(fs::path path)
    : path_(std::move(path)),
      file_(::open(path_.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644)) {
  if (!file_.valid()) throw io::write_error(errno, "open the file for writing", path_);
}

void AppendFile::append(std::string_view bytes) {
  FARSPAN_CHECK(file_.valid(), "append to a closed file");
  std::size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n = ::write(file_.get(), bytes.data() + done, bytes.size() - done);
    if (n >= 0) {
      done += static_cast<std::size_t>(n);
      continue;
    }
    if (errno == EINTR) continue;
    const int error = errno;
    if (done > 0) {  // a nearly full disk took a part: take it back
      const off_t end = ::lseek(file_.get(), 0, SEEK_END);
      if (end < 0 || ::ftruncate(file_.get(), end - static_cast<off_t>(done)) != 0)
        throw io::write_error(error, "write, nor take back half a record,", path_);
    }
    throw io::write_error(error, "write", path_, static_cast<std::int64_t>(bytes.size() - done));
  }
}

void AppendFile::sync() { io::sync_file(file_, path_); }

ReplacementFile::ReplacementFile(fs::path final_path)
    : final_path_(std::move(final_path)), file_(temporary_beside(final_path_)) {}

ReplacementFile::~ReplacementFile() {
  std::error_code ignored;
  if (!committed_) fs::remove(file_.path(), ignored);
}

void ReplacementFile::commit() {
  file_.sync();
  io::rename_path(file_.path(), final_path_);
  committed_ = true;
  io::sync_directory(final_path_.has_parent_path() ? final_path_.parent_path() : fs::path("."));
}

void replace_file(const fs::path& path, std::string_view content) {
  ReplacementFile file(path);
  file.append(content);
  file.commit();
}

}  // namespace farspan
