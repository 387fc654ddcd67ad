// What the machine offers this process. Read from /proc, /sys and the scheduler: Linux only.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace farspan::app {

struct Machine {
  std::string cpu_model;
  std::vector<std::string> isa;   // of those that matter here: "avx2", "avx512f", "amx_bf16", ...
  int cores_online = 1;           // of the machine
  int cores_bound = 1;            // this process may run on (sched_getaffinity)
  double cores_quota = 0;         // of the container (cgroup cpu.max); 0: none
  std::int64_t memory_total = 0;  // bytes
  std::int64_t memory_free = 0;   // bytes that can be had without swapping
  std::int64_t memory_quota = 0;  // of the container; 0: none
};

Machine read_machine();

// Processors this process may run on, one bit each, 64 to a word; 1024 bits.
std::vector<std::int64_t> affinity_mask();

// Threads that can run at once: `bound` processors, less where the container's quota is smaller.
int usable_cores(int bound, double quota);

// The container's limit of processors (cgroup v2 or v1); 0 when there is none.
double cpu_quota();

}  // namespace farspan::app
