#include "io/durable.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <system_error>
#include <utility>

namespace farspan::io {
namespace {

std::string text_of(int errnum) { return std::generic_category().message(errnum); }

bool out_of_space(int errnum) { return errnum == ENOSPC || errnum == EDQUOT || errnum == EFBIG; }

// Bytes that an ordinary user may still write where `path` lies; -1 when unknown.
std::int64_t free_bytes(const std::filesystem::path& path) {
  struct statvfs info {};
  for (auto p = path; !p.empty() && p != p.parent_path(); p = p.parent_path())
    if (::statvfs(p.c_str(), &info) == 0)
      return static_cast<std::int64_t>(info.f_bavail) * static_cast<std::int64_t>(info.f_frsize);
  return -1;
}

void sync_descriptor(int fd, const std::filesystem::path& path) {
  int rc = 0;
  do {
    rc = ::fsync(fd);
  } while (rc != 0 && errno == EINTR);
  // Some file systems cannot sync a directory (EINVAL): then there is nothing to wait for.
  if (rc != 0 && errno != EINVAL) throw write_error(errno, "sync to disk", path);
}

}  // namespace

FileDescriptor& FileDescriptor::operator=(FileDescriptor&& other) noexcept {
  if (this != &other) {
    if (fd_ >= 0) ::close(fd_);
    fd_ = other.release();
  }
  return *this;
}

FileDescriptor::~FileDescriptor() {
  if (fd_ >= 0) ::close(fd_);
}

Error write_error(int errnum, std::string_view action, const std::filesystem::path& path,
                  std::int64_t needed) {
  const std::string where =
      fmt::format("{} (errno {}: {})", path.string(), errnum, text_of(errnum));
  if (out_of_space(errnum)) {
    const char* cause = errnum == ENOSPC   ? "disk full"
                        : errnum == EDQUOT ? "disk quota used up"
                                           : "file size limit reached";
    std::string what = fmt::format("{}: cannot {}", cause, action);
    if (needed > 0) what += fmt::format(", needed {} bytes", needed);
    const std::int64_t free = free_bytes(path);
    if (free >= 0) what += fmt::format(" ({} bytes are free there)", free);
    return Error(ExitCode::kExhausted,
                 {.what = std::move(what),
                  .where = where,
                  .fix = errnum == EFBIG
                             ? "raise the limit (ulimit -f), or use a file system that holds "
                               "files of this size"
                             : "free space there (a smaller checkpoint.keep_last keeps fewer), or "
                               "set output_dir to a larger disk"});
  }
  if (errnum == EIO || errnum == ENOMEM || errnum == EMFILE || errnum == ENFILE) {
    return Error(ExitCode::kExhausted, {.what = fmt::format("cannot {}", action),
                                        .where = where,
                                        .fix = "check the disk and the limits of this machine"});
  }
  return Error(ExitCode::kUsage,
               {.what = fmt::format("cannot {}", action),
                .where = where,
                .fix = "set output_dir to a folder that this user can write and all ranks share"});
}

Error read_error(int errnum, std::string_view action, const std::filesystem::path& path) {
  const bool denied = errnum == EACCES || errnum == EPERM;
  return Error(denied ? ExitCode::kUsage : ExitCode::kBadData,
               {.what = errnum == ENOENT ? fmt::format("cannot {}: it does not exist", action)
                                         : fmt::format("cannot {}", action),
                .where = fmt::format("{} (errno {}: {})", path.string(), errnum, text_of(errnum)),
                .fix = denied ? "make it readable for this user"
                              : "use another checkpoint, or restore this one from a copy"});
}

FileDescriptor create_file(const std::filesystem::path& path) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd < 0) throw write_error(errno, "create a file", path);
  return FileDescriptor(fd);
}

FileDescriptor open_for_reading(const std::filesystem::path& path) {
  // O_NONBLOCK: a pipe of that name must not hang us. It means nothing for regular files.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) throw read_error(errno, "open the file", path);
  return FileDescriptor(fd);
}

std::int64_t size_of_file(const FileDescriptor& file, const std::filesystem::path& path) {
  struct stat info {};
  if (::fstat(file.get(), &info) != 0) throw read_error(errno, "examine the file", path);
  if (!S_ISREG(info.st_mode)) {
    throw Error(ExitCode::kBadData, {.what = "not a regular file",
                                     .where = path.string(),
                                     .fix = "restore the file from a copy"});
  }
  return info.st_size;
}

void reserve(const FileDescriptor& file, const std::filesystem::path& path, std::int64_t bytes) {
  if (bytes <= 0) return;
  int rc = 0;
  do {
    rc = ::fallocate(file.get(), FALLOC_FL_KEEP_SIZE, 0, bytes);
  } while (rc != 0 && errno == EINTR);
  if (rc != 0 && out_of_space(errno)) throw write_error(errno, "write", path, bytes);
}

void sync_file(const FileDescriptor& file, const std::filesystem::path& path) {
  sync_descriptor(file.get(), path);
}

void sync_directory(const std::filesystem::path& folder) {
  const FileDescriptor fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid()) throw write_error(errno, "open the folder", folder);
  sync_descriptor(fd.get(), folder);
}

void write_file(const std::filesystem::path& path, std::string_view bytes) {
  const FileDescriptor file = create_file(path);
  for (std::size_t done = 0; done < bytes.size();) {
    const ssize_t n = ::write(file.get(), bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw write_error(errno, "write", path, static_cast<std::int64_t>(bytes.size()));
    done += static_cast<std::size_t>(n);
  }
  sync_file(file, path);
}

std::string read_file(const std::filesystem::path& path, std::int64_t limit) {
  const FileDescriptor file = open_for_reading(path);
  const std::int64_t size = size_of_file(file, path);
  if (size > limit) {
    throw Error(ExitCode::kBadData,
                {.what = fmt::format("{} bytes, at most {} are expected", size, limit),
                 .where = path.string(),
                 .fix = "restore the file from a copy"});
  }
  std::string bytes(static_cast<std::size_t>(size), '\0');
  std::size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n = ::read(file.get(), bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw read_error(errno, "read the file", path);
    if (n == 0) break;  // it shrank meanwhile: the caller's checks see a short file
    done += static_cast<std::size_t>(n);
  }
  bytes.resize(done);
  return bytes;
}

void make_directory(const std::filesystem::path& folder) {
  if (::mkdir(folder.c_str(), 0777) != 0) throw write_error(errno, "create the folder", folder);
}

void make_directories(const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) throw write_error(error.value(), "create the folder", folder);
}

void rename_path(const std::filesystem::path& from, const std::filesystem::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0)
    throw write_error(errno, fmt::format("rename {}", from.filename().string()), to);
}

bool exchange_paths(const std::filesystem::path& from, const std::filesystem::path& to) {
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE) == 0) return true;
  if (errno == EINVAL || errno == ENOSYS || errno == EOPNOTSUPP) return false;
  throw write_error(errno, fmt::format("exchange {}", from.filename().string()), to);
}

}  // namespace farspan::io
