// Does a run fit? Asked before anything is allocated.
#pragma once

#include <cstddef>
#include <optional>
#include <string>

#include "config/run_config.pb.h"
#include "train/dry_run.h"

namespace farspan {

// "139.8 GiB", "0.9537 MiB": four digits, so that neither side of a close comparison, nor a small
// one, reads as equal or zero.
std::string size_text(std::size_t bytes);

// Memory that new allocations can use on this machine now, bytes (MemAvailable of /proc/meminfo);
// nullopt where that cannot be read.
std::optional<std::size_t> available_host_memory();

// Throws Error(kDoesNotFit) when what the rank needs on its device exceeds device_memory, and
// Error(kExhausted) when what the ranks of this machine (0: not asked) need of its memory exceeds
// what is left: on a CPU everything, beside a GPU what lies in host memory.
void check_memory(const DryRunReport& report, const config::RunConfig& config,
                  int ranks_on_machine);

// Whether a rank's device holds what it needs: device_memory, no limit where that is auto.
bool fits_device(const DryRunReport& report, const config::RunConfig& config);

// What device_memory: auto means on a device with memory of its own.
struct DeviceLimit {
  std::size_t bytes = 0;  // for each rank's arenas; 0: no limit
  std::string text;       // for people: "its GPU has 80 GiB free"
};

// From what the device has free now, shared out among `ranks_on_device`. No limit where
// device_memory is set, which check_memory and check_growth ask, or where memory is the host's.
DeviceLimit free_device_memory(const config::RunConfig& config, const Device& device,
                               int ranks_on_device);
// Throws Error(kDoesNotFit) when `device_bytes` exceed the limit.
void check_limit(std::size_t device_bytes, const DeviceLimit& limit);

// Asked again when a batch needs more than the first look said: `device_bytes` in all arenas then.
// Throws Error(kDoesNotFit) when they exceed device_memory.
void check_growth(std::size_t device_bytes, const config::RunConfig& config);

}  // namespace farspan
