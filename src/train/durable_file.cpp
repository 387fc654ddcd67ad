#include "train/durable_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "core/error.h"

namespace farspan {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(std::string_view action, const fs::path& path, int error) {
  const bool full = error == ENOSPC || error == EDQUOT || error == EFBIG;
  throw Error(
      full ? ExitCode::kExhausted : ExitCode::kUsage,
      {.what = fmt::format("cannot {}: {}", action, std::strerror(error)),
       .where = path.string(),
       .fix = full ? "free space on this disk (or raise the quota) and start the run again: "
                     "it resumes from its newest checkpoint"
                   : "choose an output_dir that exists and that you may write to"});
}

// Closing a descriptor that holds nothing to lose: errors cannot matter.
class Descriptor {
 public:
  explicit Descriptor(int value) : value_(value) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (value_ >= 0) ::close(value_);
  }
  int get() const { return value_; }

 private:
  int value_;
};

fs::path folder_of(const fs::path& path) {
  return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

// Makes a rename in `folder` survive a power cut.
void sync_folder(const fs::path& folder) {
  const Descriptor descriptor(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (descriptor.get() < 0) fail("open the folder", folder, errno);
  // EINVAL: a file system without fsync of folders; there is nothing more to be done there.
  if (::fsync(descriptor.get()) != 0 && errno != EINVAL) fail("sync the folder", folder, errno);
}

fs::path temporary_beside(const fs::path& path) {
  fs::path out = path;
  out += ".tmp";
  std::error_code ignored;
  fs::remove(out, ignored);  // of a process that was killed before it could put it in place
  return out;
}

}  // namespace

AppendFile::AppendFile(fs::path path) : path_(std::move(path)) {
  descriptor_ = ::open(path_.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
  if (descriptor_ < 0) fail("open the file for writing", path_, errno);
}

AppendFile::AppendFile(AppendFile&& other) noexcept
    : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)) {}

AppendFile& AppendFile::operator=(AppendFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

AppendFile::~AppendFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void AppendFile::append(std::string_view bytes) {
  FARSPAN_CHECK(descriptor_ >= 0, "append to a closed file");
  std::size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n = ::write(descriptor_, bytes.data() + done, bytes.size() - done);
    if (n >= 0) {
      done += static_cast<std::size_t>(n);
      continue;
    }
    if (errno == EINTR) continue;
    const int error = errno;
    if (done > 0) {  // a nearly full disk took a part: take it back
      const off_t end = ::lseek(descriptor_, 0, SEEK_END);
      if (end < 0 || ::ftruncate(descriptor_, end - static_cast<off_t>(done)) != 0)
        fail("write, and cannot take back half a record", path_, error);
    }
    fail("write", path_, error);
  }
}

void AppendFile::sync() {
  // EINVAL: a special file (pipe, /dev/null) that has nothing to sync.
  if (::fsync(descriptor_) != 0 && errno != EINVAL) fail("sync", path_, errno);
}

ReplacementFile::ReplacementFile(fs::path final_path)
    : final_path_(std::move(final_path)), file_(temporary_beside(final_path_)) {}

ReplacementFile::~ReplacementFile() {
  std::error_code ignored;
  if (!committed_) fs::remove(file_.path(), ignored);
}

void ReplacementFile::commit() {
  file_.sync();
  if (::rename(file_.path().c_str(), final_path_.c_str()) != 0)
    fail("put the file in place", final_path_, errno);
  committed_ = true;
  sync_folder(folder_of(final_path_));
}

void replace_file(const fs::path& path, std::string_view content) {
  ReplacementFile file(path);
  file.append(content);
  file.commit();
}

}  // namespace farspan
