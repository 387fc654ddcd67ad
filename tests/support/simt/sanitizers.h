// What the emulator tells AddressSanitizer; nothing in other builds.
#pragma once

#include <cstddef>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace farspan::simt {

#ifdef __SANITIZE_ADDRESS__
inline constexpr bool kAddressSanitizer = true;
inline void start_switch(void** fake, const void* bottom, std::size_t size) {
  __sanitizer_start_switch_fiber(fake, bottom, size);
}
inline void finish_switch(void* fake) { __sanitizer_finish_switch_fiber(fake, nullptr, nullptr); }
inline void unpoison(void* begin, std::size_t bytes) {
  __asan_unpoison_memory_region(begin, bytes);
}
// The first byte of [begin, begin + bytes) that no one owns, or nullptr.
inline const void* poisoned(const void* begin, std::size_t bytes) {
  return __asan_region_is_poisoned(const_cast<void*>(begin), bytes);
}
#else
inline constexpr bool kAddressSanitizer = false;
inline void start_switch(void**, const void*, std::size_t) {}
inline void finish_switch(void*) {}
inline void unpoison(void*, std::size_t) {}
inline const void* poisoned(const void*, std::size_t) { return nullptr; }
#endif

}  // namespace farspan::simt
