// Memory of the emulated device, and the host's pinned memory.
//
// Device memory is at a multiple of 256 bytes, full of garbage when new, and ends at a page that
// nobody may touch. Without sanitizers host code that touches it faults: it is open only while the
// device works. With AddressSanitizer it lies in the heap instead, between red zones.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace farspan::simt {

// Pages between two that nobody may touch. `data` ends where its size, rounded up to `alignment`,
// ends; the slack around it holds a pattern.
class GuardedPages {
 public:
  GuardedPages(std::size_t bytes, std::size_t alignment);
  ~GuardedPages();
  GuardedPages(const GuardedPages&) = delete;
  GuardedPages& operator=(const GuardedPages&) = delete;

  std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  bool ok() const { return data_ != nullptr; }
  void set_access(bool open) const;
  // Where the slack was written to, relative to data().
  std::optional<std::ptrdiff_t> damage() const;
  // Whether the address lies in the pages or in the guards beside them.
  bool near(const void* address) const;

 private:
  std::byte* mapping_ = nullptr;
  std::size_t mapped_ = 0;  // with the guards; 0: from the heap
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

enum class Where { kPageable, kPinned, kDevice };

class Memory {
 public:
  static constexpr std::size_t kDeviceBytes = std::size_t{8} << 30;

  void* allocate(std::size_t bytes, Where where);  // nullptr: none left
  // False: not the begin of such memory. Throws Error when memory beside it was written.
  bool release(void* data, Where where);
  Where where(const void* address) const;
  // What of memory of ours lies behind an address, or nullopt where it is not ours.
  std::optional<std::size_t> bytes_behind(const void* address) const;
  // Of memory of ours at or beside the address: "12 bytes behind the 4096 at 0x7f..".
  std::string describe(const void* address) const;
  std::size_t device_bytes_used() const;

  // Lets code touch device memory as long as someone asks for it. Of very many allocations some
  // stay open afterwards: closing each costs a system call.
  void open();
  void close();

 private:
  struct Allocation {
    std::unique_ptr<GuardedPages> pages;
    Where where;
  };
  using Map = std::map<std::uintptr_t, Allocation>;
  Map::const_iterator find(const void* address) const;

  mutable std::recursive_mutex mutex_;
  Map allocations_;
  std::size_t used_ = 0;
  int opened_ = 0;
  std::vector<std::uintptr_t> closed_;  // by the last close(); new allocations are, too
  std::uintptr_t turn_ = 0;             // where close() stopped
};

Memory& memory();

// Fails in a kernel unless the bytes may be read.
void require_readable(const void* address, std::size_t bytes, const char* instruction);

}  // namespace farspan::simt
