#include "data/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <cerrno>
#include <cstring>
#include <memory>

namespace farspan {
namespace {

constexpr std::size_t kReadBytes = std::size_t{1} << 20;

class Descriptor {
 public:
  Descriptor(const std::filesystem::path& path, int flags, int mode = 0)
      : fd_(::open(path.c_str(), flags | O_CLOEXEC, mode)) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

struct FreeState {
  void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
};
using HashState = std::unique_ptr<XXH3_state_t, FreeState>;

std::string hex(XXH128_hash_t h) { return fmt::format("{:016x}{:016x}", h.high64, h.low64); }

Error read_error(int error_number, const std::filesystem::path& path) {
  return Error(ExitCode::kBadData,
               {.what = fmt::format("cannot read the file: {}", std::strerror(error_number)),
                .where = path.string(),
                .fix = "check the path and its permissions"});
}

// Reads up to `bytes`; short only at the end of the file.
std::size_t read_full(int fd, char* out, std::size_t bytes, const std::filesystem::path& path) {
  std::size_t done = 0;
  while (done < bytes) {
    const ssize_t n = ::read(fd, out + done, bytes - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw read_error(errno, path);
    if (n == 0) break;
    done += static_cast<std::size_t>(n);
  }
  return done;
}

}  // namespace

std::string hash_text(std::string_view bytes) {
  return hex(XXH3_128bits(bytes.data(), bytes.size()));
}

FileHash hash_file(const std::filesystem::path& path, std::int64_t block_bytes) {
  Descriptor file(path, O_RDONLY);
  if (file.get() < 0) throw read_error(errno, path);
  ::posix_fadvise(file.get(), 0, 0, POSIX_FADV_SEQUENTIAL);
  HashState whole(XXH3_createState());
  HashState block(XXH3_createState());
  if (!whole || !block) throw std::bad_alloc();
  XXH3_128bits_reset(whole.get());
  XXH3_64bits_reset(block.get());
  FileHash out;
  std::int64_t in_block = 0;
  const auto buffer = std::make_unique<char[]>(kReadBytes);
  while (const std::size_t n = read_full(file.get(), buffer.get(), kReadBytes, path)) {
    XXH3_128bits_update(whole.get(), buffer.get(), n);
    out.bytes += static_cast<std::int64_t>(n);
    for (std::size_t at = 0; block_bytes > 0 && at < n;) {
      const auto part = std::min(n - at, static_cast<std::size_t>(block_bytes - in_block));
      XXH3_64bits_update(block.get(), buffer.get() + at, part);
      at += part;
      in_block += static_cast<std::int64_t>(part);
      if (in_block < block_bytes) continue;
      out.blocks.push_back(XXH3_64bits_digest(block.get()));
      XXH3_64bits_reset(block.get());
      in_block = 0;
    }
    if (n < kReadBytes) break;
  }
  if (in_block > 0) out.blocks.push_back(XXH3_64bits_digest(block.get()));
  out.xxh3_128 = hex(XXH3_128bits_digest(whole.get()));
  return out;
}

Error system_error(int error_number, std::string_view action, const std::filesystem::path& path) {
  const std::string what = fmt::format("cannot {}: {}", action, std::strerror(error_number));
  switch (error_number) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return Error(ExitCode::kExhausted,
                   {.what = what,
                    .where = path.string(),
                    .fix = "free space there (or raise the quota or `ulimit -f`), or write to "
                           "another disk; what was there before is intact"});
    default:
      return Error(ExitCode::kUsage, {.what = what,
                                      .where = path.string(),
                                      .fix = "choose a folder that exists and can be written"});
  }
}

void write_file_synced(const std::filesystem::path& path, std::string_view content) {
  Descriptor file(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
  if (file.get() < 0) throw system_error(errno, "create", path);
  while (!content.empty()) {
    const ssize_t n = ::write(file.get(), content.data(), content.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw system_error(errno, "write", path);
    content.remove_prefix(static_cast<std::size_t>(n));
  }
  if (::fsync(file.get()) != 0) throw system_error(errno, "sync", path);
}

void sync_path(const std::filesystem::path& path) {
  Descriptor file(path, O_RDONLY);
  if (file.get() < 0) throw system_error(errno, "open", path);
  // Some file systems cannot sync a folder (EINVAL); there is nothing better to do on them.
  if (::fsync(file.get()) != 0 && errno != EINVAL) throw system_error(errno, "sync", path);
}

void rename_synced(const std::filesystem::path& from, const std::filesystem::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) throw system_error(errno, "rename", to);
  const auto folder = to.parent_path();
  sync_path(folder.empty() ? std::filesystem::path(".") : folder);
}

std::string read_file(const std::filesystem::path& path) {
  Descriptor file(path, O_RDONLY);
  if (file.get() < 0) throw read_error(errno, path);
  std::string out;
  for (;;) {
    const std::size_t old = out.size();
    out.resize(old + kReadBytes);
    const std::size_t n = read_full(file.get(), out.data() + old, kReadBytes, path);
    out.resize(old + n);
    if (n < kReadBytes) return out;
  }
}

}  // namespace farspan
