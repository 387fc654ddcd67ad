#include "app/machine.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <fstream>
#include <map>
#include <sstream>

namespace farspan::app {
namespace {

std::string first_line(const std::string& path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  return line;
}

// "key : value" lines of /proc files; the first of each key.
std::map<std::string, std::string> read_fields(const std::string& path) {
  std::ifstream in(path);
  std::map<std::string, std::string> out;
  for (std::string line; std::getline(in, line);) {
    const std::size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    std::string key = line.substr(0, colon);
    while (!key.empty() && (key.back() == ' ' || key.back() == '\t')) key.pop_back();
    const std::size_t begin = line.find_first_not_of(" \t", colon + 1);
    out.emplace(key, begin == std::string::npos ? "" : line.substr(begin));
  }
  return out;
}

std::int64_t to_int64(const std::string& text) {
  std::istringstream in(text);
  std::int64_t value = 0;
  return in >> value ? value : 0;
}

std::vector<std::string> relevant_isa(const std::string& flags) {
  static const std::vector<std::string> kRelevant = {"avx2",        "fma",      "avx512f",
                                                     "avx512_bf16", "amx_tile", "amx_bf16"};
  std::vector<std::string> out;
  std::istringstream in(flags);
  for (std::string flag; in >> flag;)
    if (std::find(kRelevant.begin(), kRelevant.end(), flag) != kRelevant.end()) out.push_back(flag);
  return out;
}

std::int64_t memory_quota() {
  for (const char* path :
       {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    const std::int64_t limit = to_int64(first_line(path));
    constexpr std::int64_t kNone = std::int64_t{1} << 60;  // cgroup v1 writes a huge number
    if (limit > 0 && limit < kNone) return limit;
  }
  return 0;
}

}  // namespace

double cpu_quota() {
  std::istringstream v2(first_line("/sys/fs/cgroup/cpu.max"));
  double quota = 0, period = 0;
  if (v2 >> quota >> period && period > 0) return quota / period;  // "max 100000" fails to parse
  const double v1_quota =
      static_cast<double>(to_int64(first_line("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")));
  const double v1_period =
      static_cast<double>(to_int64(first_line("/sys/fs/cgroup/cpu/cpu.cfs_period_us")));
  return v1_quota > 0 && v1_period > 0 ? v1_quota / v1_period : 0;
}

int usable_cores(int bound, double quota) {
  const int limit = quota > 0 ? std::max(1, static_cast<int>(std::ceil(quota))) : bound;
  return std::max(1, std::min(bound, limit));
}

std::vector<std::int64_t> affinity_mask() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<std::int64_t> out(CPU_SETSIZE / 64, 0);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) {
    out[0] = 1;  // more than 1024 processors: unknown, so count on one
    return out;
  }
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &set))
      out[static_cast<std::size_t>(cpu / 64)] |=
          static_cast<std::int64_t>(std::uint64_t{1} << (cpu % 64));
  return out;
}

Machine read_machine() {
  Machine out;
  const auto cpu = read_fields("/proc/cpuinfo");
  const auto memory = read_fields("/proc/meminfo");
  const auto text = [](const auto& fields, const char* key) {
    const auto found = fields.find(key);
    return found == fields.end() ? std::string() : found->second;
  };
  out.cpu_model = text(cpu, "model name");
  out.isa = relevant_isa(text(cpu, "flags"));
  out.cores_online = static_cast<int>(std::max(1L, sysconf(_SC_NPROCESSORS_ONLN)));
  out.cores_bound = 0;
  for (std::int64_t word : affinity_mask())
    out.cores_bound += std::popcount(static_cast<std::uint64_t>(word));
  out.cores_quota = cpu_quota();
  out.memory_total = to_int64(text(memory, "MemTotal")) * 1024;
  out.memory_free = to_int64(text(memory, "MemAvailable")) * 1024;
  out.memory_quota = memory_quota();
  return out;
}

}  // namespace farspan::app
