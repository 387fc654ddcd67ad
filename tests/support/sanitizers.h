// What a sanitizer build cannot do, so that tests say so instead of failing.
#pragma once

namespace farspan::testing {

// g++ 12's OpenMP runtime is not instrumented: ThreadSanitizer takes its barriers for races. Such
// builds run one OpenMP thread per rank.
#ifdef __SANITIZE_THREAD__
inline constexpr bool kThreadSanitizer = true;
#else
inline constexpr bool kThreadSanitizer = false;
#endif

// CPU threads for tests that are not about threads.
inline constexpr int kTestThreads = kThreadSanitizer ? 1 : 2;

}  // namespace farspan::testing
