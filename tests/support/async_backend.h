// The CPU's kernels as a device of its own time (support/async_device.h): operations run when their
// stream comes to them. For tests of what orders the work of a training step; results are the bits
// of the CPU backend. Memory of the device lies where the host could read it, because the kernels
// do.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "kernels/backend.h"
#include "kernels/checked.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/isa.h"
#include "support/async_device.h"

namespace farspan::testing {

// Device memory without the guard.
class OpenAsyncDevice final : public AsyncDevice {
 public:
  using AsyncDevice::AsyncDevice;
  Buffer allocate(std::size_t bytes) override {
    if (bytes == 0) return {};
    auto* const data =
        static_cast<std::byte*>(std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096));
    return Buffer(data, bytes, id(), [](std::byte* p, std::size_t) { std::free(p); });
  }
};

class AsyncKernels final : public Kernels {
 public:
#define FARSPAN_LATER(op, Args)                                              \
  void op(const Args& args, Stream& stream) override {                       \
    AsyncDevice::enqueue(stream, [this, args] { cpu_.op(args, at_once_); }); \
  }
  FARSPAN_LATER(copy, CopyArgs)
  FARSPAN_LATER(fill, FillArgs)
  FARSPAN_LATER(add, AddArgs)
  FARSPAN_LATER(matmul, MatmulArgs)
  FARSPAN_LATER(rmsnorm_forward, RmsNormForwardArgs)
  FARSPAN_LATER(rmsnorm_backward, RmsNormBackwardArgs)
  FARSPAN_LATER(rope_table, RopeTableArgs)
  FARSPAN_LATER(rope_apply, RopeApplyArgs)
  FARSPAN_LATER(swiglu_forward, SwiGluForwardArgs)
  FARSPAN_LATER(swiglu_backward, SwiGluBackwardArgs)
  FARSPAN_LATER(embedding_forward, EmbeddingForwardArgs)
  FARSPAN_LATER(embedding_backward, EmbeddingBackwardArgs)
  FARSPAN_LATER(cross_entropy, CrossEntropyArgs)
  FARSPAN_LATER(squared_norm, SquaredNormArgs)
  FARSPAN_LATER(clip, ClipArgs)
  FARSPAN_LATER(adamw, AdamWArgs)
  FARSPAN_LATER(attention_forward, AttentionForwardArgs)
  FARSPAN_LATER(attention_delta, AttentionDeltaArgs)
  FARSPAN_LATER(attention_backward, AttentionBackwardArgs)
  FARSPAN_LATER(copy_2d, Copy2dArgs)
  FARSPAN_LATER(exact_add, ExactAddArgs)
  FARSPAN_LATER(exact_matmul, ExactMatmulArgs)
  FARSPAN_LATER(exact_read, ExactReadArgs)
#undef FARSPAN_LATER

 private:
  cpu::CpuKernels cpu_{{.isa = best_cpu_isa(), .num_threads = 1}};
  Stream at_once_;
};

class AsyncBackend final : public Backend {
 public:
  // `device` must outlive this object; backends of several ranks may share it.
  explicit AsyncBackend(AsyncDevice& device)
      : device_(device),
        kernels_(make_checked(std::make_unique<AsyncKernels>(), device.id())),
        stream_(device.make_stream()) {}
  Device& device() override { return device_; }
  Kernels& kernels() override { return *kernels_; }
  Stream& stream() override { return *stream_; }
  std::string description() const override { return "the CPU's kernels in their own time"; }

 private:
  AsyncDevice& device_;
  std::unique_ptr<Kernels> kernels_;
  std::unique_ptr<Stream> stream_;  // ends its work before the kernels go
};

}  // namespace farspan::testing
