#include "train/memory.h"

#include <fstream>
#include <optional>
#include <string>

#include "core/error.h"

namespace farspan {
namespace {

constexpr const char* kAdvice =
    "raise parallel.context, lower train.micro_batch or train.sequence_length, or set "
    "train.recompute: full+attention (--dry-run shows what needs how much)";

constexpr const char* kHostAdvice =
    "set train.recompute: full+attention (offload keeps activations in host memory), or raise "
    "parallel.context (--dry-run shows what needs how much)";

}  // namespace

std::string size_text(std::size_t bytes) {
  const auto b = static_cast<double>(bytes);
  return bytes >= (std::size_t{1} << 30) ? fmt::format("{:.4g} GiB", b / (1 << 30))
                                         : fmt::format("{:.4g} MiB", b / (1 << 20));
}

std::optional<std::size_t> available_host_memory() {
  std::ifstream file("/proc/meminfo");
  std::string key, unit;
  std::size_t kib = 0;
  while (file >> key >> kib) {
    std::getline(file, unit);
    if (key == "MemAvailable:") return kib * 1024;
  }
  return std::nullopt;
}

bool fits_device(const DryRunReport& report, const config::RunConfig& config) {
  const auto limit = static_cast<std::size_t>(config.device_memory());
  return limit == 0 || report.device_bytes() <= limit;
}

void check_memory(const DryRunReport& report, const config::RunConfig& config,
                  int ranks_on_machine) {
  const auto limit = static_cast<std::size_t>(config.device_memory());
  if (!fits_device(report, config))
    throw Error(ExitCode::kDoesNotFit,
                {.what = fmt::format("a rank needs {} and device_memory is {}",
                                     size_text(report.device_bytes()), size_text(limit)),
                 .where = "device_memory",
                 .fix = kAdvice});
  if (ranks_on_machine < 1) return;  // a dry run of another machine
  const bool gpu = config.device() == "cuda";
  const std::size_t each = gpu ? report.host_bytes() : report.total_bytes();
  const std::size_t needed = each * static_cast<std::size_t>(ranks_on_machine);
  const auto available = available_host_memory();
  if (available && needed > *available)
    throw Error(
        ExitCode::kExhausted,
        {.what = fmt::format("{} rank(s) of {}{} need {}; this machine has {} left",
                             ranks_on_machine, size_text(each), gpu ? " beside their GPUs" : "",
                             size_text(needed), size_text(*available)),
         .fix = gpu ? kHostAdvice : kAdvice});
}

DeviceLimit free_device_memory(const config::RunConfig& config, const Device& device,
                               int ranks_on_device) {
  const std::optional<DeviceMemory> memory = device.memory();
  if (config.device_memory() > 0 || !memory) return {};
  const std::size_t each = memory->free / static_cast<std::size_t>(ranks_on_device);
  return {.bytes = each,
          .text = fmt::format(
              "its GPU has {} free of {}{}", size_text(memory->free), size_text(memory->total),
              ranks_on_device == 1 ? "" : fmt::format(", for {} ranks", ranks_on_device))};
}

void check_limit(std::size_t device_bytes, const DeviceLimit& limit) {
  if (limit.bytes == 0 || device_bytes <= limit.bytes) return;
  throw Error(ExitCode::kDoesNotFit,
              {.what = fmt::format("a rank needs {} and {}", size_text(device_bytes), limit.text),
               .where = "device_memory: auto",
               .fix = kAdvice});
}

void check_growth(std::size_t device_bytes, const config::RunConfig& config) {
  const auto limit = static_cast<std::size_t>(config.device_memory());
  if (limit == 0 || device_bytes <= limit) return;
  throw Error(
      ExitCode::kDoesNotFit,
      {.what = fmt::format("the documents of a batch need {} on a rank and device_memory is "
                           "{}",
                           size_text(device_bytes), size_text(limit)),
       .where = "device_memory",
       .fix = kAdvice});
}

}  // namespace farspan
