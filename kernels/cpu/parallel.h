// Threads of one rank, by OpenMP, asked for by number at every use: ranks may be threads of one
// process, each with a team of its own.
//
//   parallel_for(threads, rows, 64, [&](std::int64_t begin, std::int64_t end) { ... });
//
// The body must give the same result however [0, n) is cut at multiples of `grain`.
#pragma once

#include <omp.h>

#include <cstdint>

namespace farspan::cpu {

// Calls body(begin, end) on pieces that cover [0, n), with borders at multiples of grain. Work of
// one grain or less stays on the calling thread. The body must not throw.
template <typename Body>
void parallel_for(int num_threads, std::int64_t n, std::int64_t grain, const Body& body) {
  const std::int64_t grains = (n + grain - 1) / grain;
  if (num_threads == 1 || grains <= 1) {
    if (n > 0) body(std::int64_t{0}, n);
    return;
  }
#pragma omp parallel num_threads(num_threads)
  {
    // Always the full team: libgomp ends and starts threads when the size of a team changes.
    const std::int64_t team = omp_get_num_threads();
    const std::int64_t me = omp_get_thread_num();
    const std::int64_t begin = grains * me / team * grain;
    const std::int64_t end = me + 1 == team ? n : grains * (me + 1) / team * grain;
    if (begin < end) body(begin, end);
  }
}

// The number of threads that a library asks OpenMP for (oneDNN) while this object lives.
class ThreadCount {
 public:
  explicit ThreadCount(int num_threads) : before_(omp_get_max_threads()) {
    omp_set_num_threads(num_threads);
  }
  ThreadCount(const ThreadCount&) = delete;
  ThreadCount& operator=(const ThreadCount&) = delete;
  ~ThreadCount() { omp_set_num_threads(before_); }

 private:
  int before_;
};

}  // namespace farspan::cpu
