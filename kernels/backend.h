// A device with its kernels, made by name.
//
//   auto backend = make_backend({.kind = DeviceKind::kCpu, .num_threads = 2});
//   backend->kernels().matmul({...}, backend->stream());
//
// A backend belongs to one rank and is used from that rank's thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/device.h"
#include "core/trace.h"
#include "kernels/kernels.h"

namespace farspan {

// Instruction sets of the CPU's own kernels, best last. kAuto: the best this processor runs.
enum class CpuIsa : std::uint8_t { kAuto, kPortable, kAvx2, kAvx512, kAvx512Bf16, kAmx };

// Who computes attention on CUDA. kAuto: cuDNN where it is exact and at hand, else our own kernels.
enum class AttentionKernel : std::uint8_t { kAuto, kOwn, kCudnn };

struct BackendOptions {
  DeviceKind kind = DeviceKind::kCpu;
  int device_index = 0;
  int num_threads = 1;             // CPU threads of this rank
  CpuIsa cpu_isa = CpuIsa::kAuto;  // a test or a user may force a lower one
  AttentionKernel attention_kernel = AttentionKernel::kAuto;  // CUDA only
  DeviceKind dry_target = DeviceKind::kCpu;  // dry: the kind of device that it stands for
};

// Something that takes memory, for people.
struct MemoryItem {
  std::string name;
  std::size_t bytes = 0;
};

// What a pass has asked of the kernels (dry backend; others return zeros).
struct WorkCounters {
  double matmul_flops = 0;              // 2 M N K
  double attention_forward_flops = 0;   // 4 D per visible (query head, key) pair
  double attention_backward_flops = 0;  // 10 D per visible pair
  double bytes = 0;                     // read and written by all operations
  std::int64_t calls = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual Device& device() = 0;
  virtual Kernels& kernels() = 0;
  virtual Stream& stream() = 0;
  // One line a person can read: "cpu: avx512_bf16 attention, oneDNN 2.6.3 matmul, 2 threads".
  virtual std::string description() const = 0;
  // The kind of device whose choices (sizes of chunks) apply; dry backends stand for another.
  virtual DeviceKind target() { return device().id().kind; }
  // What became known since the last call and is worth a line in the log: which attention kernel
  // took the calls, and why.
  virtual std::vector<std::string> take_notes() { return {}; }
  // Device memory that operations take beside their tensors, as a dry backend predicts it from the
  // calls so far for the kind of device that it stands for. Others' is in Device::taken().
  virtual std::vector<MemoryItem> workspaces() const { return {}; }
  virtual WorkCounters work() const { return {}; }
  virtual void reset_work() {}
  // What this backend adds to a trace; null where the host's clock says everything. `profile`: time
  // every section on the device, not only waits for other ranks.
  virtual std::unique_ptr<TraceSink> make_trace_sink(bool /*profile*/) { return nullptr; }
};

// Throws Error(kUsage) naming what is missing (the CUDA build, a device, an instruction set) and
// how to get it.
std::unique_ptr<Backend> make_backend(const BackendOptions& options);

// Kinds that this build contains.
std::vector<DeviceKind> built_backends();

// Devices of a kind that this process may use: GPUs (CUDA_VISIBLE_DEVICES is respected); 1 for the
// others.
int num_devices(DeviceKind kind);

// One thing to know about the devices of this machine, for people.
struct DeviceFact {
  std::string name;   // "cuda driver"
  std::string value;  // "serves CUDA up to 13.0"
};

// What this build and this machine have for a kind of device: libraries, driver, devices. Empty
// where make_backend's description says everything. An absent device is a fact, not an error.
std::vector<DeviceFact> device_facts(DeviceKind kind);

}  // namespace farspan
