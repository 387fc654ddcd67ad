#include "io/content_hash.h"

#include <fcntl.h>
#include <unistd.h>
#include <xxhash.h>

#include <cerrno>
#include <new>
#include <vector>

#include "io/durable.h"

namespace farspan::io {

struct ContentHash::State {
  // XXH3 wants 64-byte alignment, which only its own allocation gives.
  XXH3_state_t* xxh = XXH3_createState();
  State() {
    if (xxh == nullptr) throw std::bad_alloc();
    XXH3_128bits_reset(xxh);
  }
  ~State() { XXH3_freeState(xxh); }
  State(const State&) = delete;
  State& operator=(const State&) = delete;
};

ContentHash::ContentHash() : state_(std::make_unique<State>()) {}
ContentHash::~ContentHash() = default;
ContentHash::ContentHash(ContentHash&&) noexcept = default;
ContentHash& ContentHash::operator=(ContentHash&&) noexcept = default;

void ContentHash::update(std::span<const std::byte> bytes) {
  if (!bytes.empty()) XXH3_128bits_update(state_->xxh, bytes.data(), bytes.size());
}

void ContentHash::update(std::string_view text) {
  update(std::as_bytes(std::span(text.data(), text.size())));
}

void ContentHash::update(std::int64_t value) {
  std::byte bytes[8];
  for (int i = 0; i < 8; ++i)
    bytes[i] = static_cast<std::byte>(static_cast<std::uint64_t>(value) >> (8 * i));
  update(std::span<const std::byte>(bytes));
}

std::string ContentHash::hex() const {
  const XXH128_hash_t h = XXH3_128bits_digest(state_->xxh);
  return fmt::format("{:016x}{:016x}", h.high64, h.low64);
}

std::string hash_of(std::string_view bytes) {
  ContentHash hash;
  hash.update(bytes);
  return hash.hex();
}

FileHash hash_file(const std::filesystem::path& path) {
  const FileDescriptor file = open_for_reading(path);
  size_of_file(file, path);  // refuses what is not a regular file
  ::posix_fadvise(file.get(), 0, 0, POSIX_FADV_SEQUENTIAL);
  std::vector<std::byte> buffer(std::size_t{1} << 20);
  ContentHash hash;
  std::int64_t bytes = 0;
  for (;;) {
    const ssize_t n = ::read(file.get(), buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw read_error(errno, fmt::format("read the file at offset {}", bytes), path);
    if (n == 0) return {.bytes = bytes, .xxh3_128 = hash.hex()};
    hash.update(std::span<const std::byte>(buffer.data(), static_cast<std::size_t>(n)));
    bytes += n;
  }
}

bool is_hash(std::string_view text) {
  if (text.size() != 32) return false;
  for (const char c : text)
    if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'))) return false;
  return true;
}

}  // namespace farspan::io
