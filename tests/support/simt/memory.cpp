#include "support/simt/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "core/error.h"
#include "support/simt/kernel_view.h"
#include "support/simt/sanitizers.h"

namespace farspan::simt {
namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kDeviceAlignment = 256;
constexpr std::byte kSlack{0xff};

std::size_t round_up(std::size_t n, std::size_t to) { return (n + to - 1) / to * to; }
std::uintptr_t number(const void* p) { return reinterpret_cast<std::uintptr_t>(p); }

}  // namespace

GuardedPages::GuardedPages(std::size_t bytes, std::size_t alignment) : bytes_(bytes) {
  if (kAddressSanitizer) {
    void* data = nullptr;
    if (posix_memalign(&data, alignment, std::max<std::size_t>(bytes, 1)) != 0) return;
    data_ = static_cast<std::byte*>(data);
  } else {
    const std::size_t padded = round_up(bytes, alignment), pages = round_up(padded, kPage);
    mapped_ = pages + 2 * kPage;
    void* mapping = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) return;
    mapping_ = static_cast<std::byte*>(mapping);
    data_ = mapping_ + kPage + (pages - padded);
    set_access(true);
    // Opening and closing costs by the page.
    madvise(mapping_ + kPage, pages, MADV_HUGEPAGE);
    std::memset(mapping_ + kPage, std::to_integer<int>(kSlack), pages);
  }
  std::memset(data_, kGarbage, bytes);
}

GuardedPages::~GuardedPages() {
  if (mapping_ != nullptr)
    munmap(mapping_, mapped_);
  else
    std::free(data_);
}

void GuardedPages::set_access(bool open) const {
  if (mapping_ != nullptr && mapped_ > 2 * kPage)
    mprotect(mapping_ + kPage, mapped_ - 2 * kPage, open ? PROT_READ | PROT_WRITE : PROT_NONE);
}

std::optional<std::ptrdiff_t> GuardedPages::damage() const {
  if (mapping_ == nullptr) return std::nullopt;
  const auto search = [&](const std::byte* begin,
                          const std::byte* end) -> std::optional<std::ptrdiff_t> {
    const std::byte* const found =
        std::find_if(begin, end, [](std::byte b) { return b != kSlack; });
    if (found == end) return std::nullopt;
    return found - data_;
  };
  if (const auto after = search(data_ + bytes_, mapping_ + mapped_ - kPage)) return after;
  return search(mapping_ + kPage, data_);
}

bool GuardedPages::near(const void* address) const {
  const auto* const a = static_cast<const std::byte*>(address);
  if (mapping_ != nullptr) return a >= mapping_ && a < mapping_ + mapped_;
  return a + kPage >= data_ && a < data_ + bytes_ + kPage;
}

void* Memory::allocate(std::size_t bytes, Where where) {
  const std::lock_guard lock(mutex_);
  if (where == Where::kDevice && bytes > kDeviceBytes - used_) return nullptr;
  auto pages = std::make_unique<GuardedPages>(bytes, kDeviceAlignment);
  if (!pages->ok()) return nullptr;
  std::byte* const data = pages->data();
  if (where == Where::kDevice) {
    used_ += bytes;
    if (opened_ == 0) {
      pages->set_access(false);
      closed_.push_back(number(data));
    }
  }
  allocations_[number(data)] = {std::move(pages), where};
  return data;
}

bool Memory::release(void* data, Where where) {
  const std::lock_guard lock(mutex_);
  const auto found = allocations_.find(number(data));
  if (found == allocations_.end() || found->second.where != where) return false;
  const Allocation allocation = std::move(found->second);
  allocations_.erase(found);
  if (where == Where::kDevice) used_ -= allocation.pages->bytes();
  allocation.pages->set_access(true);
  if (const auto damage = allocation.pages->damage())
    throw Error(ExitCode::kInternal,
                {.what = fmt::format("memory was written at byte {} of the {} at {}", *damage,
                                     allocation.pages->bytes(), data)});
  return true;
}

Memory::Map::const_iterator Memory::find(const void* address) const {
  const auto behind = allocations_.upper_bound(number(address));
  if (behind == allocations_.begin()) return allocations_.end();
  const auto at = std::prev(behind);
  const bool inside =
      number(address) < at->first + std::max<std::size_t>(at->second.pages->bytes(), 1);
  return inside ? at : allocations_.end();
}

Where Memory::where(const void* address) const {
  const std::lock_guard lock(mutex_);
  const auto at = find(address);
  return at == allocations_.end() ? Where::kPageable : at->second.where;
}

std::optional<std::size_t> Memory::bytes_behind(const void* address) const {
  const std::lock_guard lock(mutex_);
  const auto at = find(address);
  if (at == allocations_.end()) return std::nullopt;
  return at->first + at->second.pages->bytes() - number(address);
}

std::string Memory::describe(const void* address) const {
  const std::lock_guard lock(mutex_);
  for (const auto& [begin, allocation] : allocations_) {
    if (!allocation.pages->near(address)) continue;
    const auto offset = static_cast<std::ptrdiff_t>(number(address) - begin);
    return fmt::format("byte {} of {} bytes of {} memory at {:#x}", offset,
                       allocation.pages->bytes(),
                       allocation.where == Where::kDevice ? "device" : "pinned", begin);
  }
  return "not memory of the device";
}

std::size_t Memory::device_bytes_used() const {
  const std::lock_guard lock(mutex_);
  return used_;
}

void Memory::open() {
  const std::lock_guard lock(mutex_);
  if (opened_++ > 0) return;
  for (const std::uintptr_t begin : closed_)
    if (const auto at = allocations_.find(begin); at != allocations_.end())
      at->second.pages->set_access(true);
  closed_.clear();
}

void Memory::close() {
  constexpr std::size_t kMostClosed = 128;
  const std::lock_guard lock(mutex_);
  if (--opened_ > 0) return;
  // From a place that moves, so that each gets its turn.
  const auto middle = allocations_.upper_bound(turn_);
  const auto close_some = [&](auto begin, auto end) {
    for (auto at = begin; at != end && closed_.size() < kMostClosed; ++at) {
      if (at->second.where != Where::kDevice) continue;
      at->second.pages->set_access(false);
      closed_.push_back(turn_ = at->first);
    }
  };
  close_some(middle, allocations_.end());
  close_some(allocations_.begin(), middle);
}

Memory& memory() {
  static Memory the_memory;
  return the_memory;
}

void require_readable(const void* address, std::size_t bytes, const char* instruction) {
  const auto behind = memory().bytes_behind(address);
  const bool fits = behind ? *behind >= bytes : memory().describe(address).starts_with("not");
  if (!fits || poisoned(address, bytes) != nullptr)
    fail(fmt::format("{} reads {} bytes at {}: {}", instruction, bytes, address,
                     memory().describe(address)));
}

}  // namespace farspan::simt
