// The CPU backend with queues that can record: what PassGraphs and whoever records passes needs, on
// a machine without a GPU. As on a GPU, work that is recorded does not run, runs later on the same
// addresses, and nothing may be allocated meanwhile.
//
//   RecordingBackend backend;
//   backend.stream().begin_recording();
//   backend.kernels().add({...}, backend.stream());      // does not run
//   auto graph = backend.stream().end_recording();
//   graph->launch(backend.stream());                     // runs
//
// Recorded calls keep their arguments, not what spans in them point to: that must outlive the
// graph.
#pragma once

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "core/error.h"
#include "kernels/backend.h"

namespace farspan::testing {

class RecordingStream final : public Stream {
 public:
  bool can_record() const override { return true; }
  bool is_recording() const override { return recording_; }
  void begin_recording() override { recording_ = true; }
  std::unique_ptr<Graph> end_recording() override {
    recording_ = false;
    return std::make_unique<Recorded>(std::exchange(work_, {}));
  }
  void abandon_recording() noexcept override {
    recording_ = false;
    work_.clear();
  }
  void synchronize() override { require_running("synchronize"); }
  // Runs the work, or notes it.
  void give(std::function<void()> work) {
    if (recording_)
      work_.push_back(std::move(work));
    else
      work();
  }
  void require_running(const char* call) const {
    if (recording_)
      throw Error(ExitCode::kInternal, {.what = fmt::format("{} while a queue records", call)});
  }

 private:
  class Recorded final : public Graph {
   public:
    explicit Recorded(std::vector<std::function<void()>> work) : work_(std::move(work)) {}
    void launch(Stream&) override {
      for (const auto& item : work_) item();
    }

   private:
    std::vector<std::function<void()>> work_;
  };

  bool recording_ = false;
  std::vector<std::function<void()>> work_;
};

class RecordingKernels final : public Kernels {
 public:
  explicit RecordingKernels(Backend& inner) : inner_(inner) {}
  int released() const { return released_; }
  void release_recordings() override { ++released_; }

#define FARSPAN_RECORDED(operation, Args)                                     \
  void operation(const Args& args, Stream& stream) override {                 \
    static_cast<RecordingStream&>(stream).give(                               \
        [this, args] { inner_.kernels().operation(args, inner_.stream()); }); \
  }
  FARSPAN_RECORDED(copy, CopyArgs)
  FARSPAN_RECORDED(fill, FillArgs)
  FARSPAN_RECORDED(add, AddArgs)
  FARSPAN_RECORDED(matmul, MatmulArgs)
  FARSPAN_RECORDED(rmsnorm_forward, RmsNormForwardArgs)
  FARSPAN_RECORDED(rmsnorm_backward, RmsNormBackwardArgs)
  FARSPAN_RECORDED(rope_table, RopeTableArgs)
  FARSPAN_RECORDED(rope_apply, RopeApplyArgs)
  FARSPAN_RECORDED(swiglu_forward, SwiGluForwardArgs)
  FARSPAN_RECORDED(swiglu_backward, SwiGluBackwardArgs)
  FARSPAN_RECORDED(embedding_forward, EmbeddingForwardArgs)
  FARSPAN_RECORDED(embedding_backward, EmbeddingBackwardArgs)
  FARSPAN_RECORDED(cross_entropy, CrossEntropyArgs)
  FARSPAN_RECORDED(squared_norm, SquaredNormArgs)
  FARSPAN_RECORDED(clip, ClipArgs)
  FARSPAN_RECORDED(adamw, AdamWArgs)
  FARSPAN_RECORDED(attention_forward, AttentionForwardArgs)
  FARSPAN_RECORDED(attention_delta, AttentionDeltaArgs)
  FARSPAN_RECORDED(attention_backward, AttentionBackwardArgs)
  FARSPAN_RECORDED(copy_2d, Copy2dArgs)
  FARSPAN_RECORDED(exact_add, ExactAddArgs)
  FARSPAN_RECORDED(exact_matmul, ExactMatmulArgs)
  FARSPAN_RECORDED(exact_read, ExactReadArgs)
#undef FARSPAN_RECORDED

 private:
  Backend& inner_;
  int released_ = 0;
};

class RecordingBackend final : public Backend {
 public:
  explicit RecordingBackend(int threads = 1)
      : inner_(make_backend({.kind = DeviceKind::kCpu, .num_threads = threads})),
        device_(inner_->device(), stream_),
        kernels_(*inner_) {}

  Device& device() override { return device_; }
  RecordingKernels& kernels() override { return kernels_; }
  RecordingStream& stream() override { return stream_; }
  std::string description() const override { return "the CPU, recording"; }

 private:
  class RecordingDevice final : public Device {
   public:
    RecordingDevice(Device& inner, RecordingStream& stream) : inner_(inner), stream_(stream) {}
    DeviceId id() const override { return inner_.id(); }
    std::string name() const override { return inner_.name(); }
    std::string hardware_id() const override { return inner_.hardware_id(); }
    Buffer allocate(std::size_t bytes) override {
      stream_.require_running("allocation");
      return inner_.allocate(bytes);
    }
    Buffer allocate_host(std::size_t bytes) override { return allocate(bytes); }
    void copy(std::byte* dst, const std::byte* src, std::size_t bytes, Stream& stream) override {
      static_cast<RecordingStream&>(stream).give([this, dst, src, bytes] {
        Stream at_once;
        inner_.copy(dst, src, bytes, at_once);
      });
    }
    std::unique_ptr<Stream> make_stream() override { return std::make_unique<RecordingStream>(); }

   private:
    Device& inner_;
    RecordingStream& stream_;
  };

  std::unique_ptr<Backend> inner_;
  RecordingStream stream_;
  RecordingDevice device_;
  RecordingKernels kernels_;
};

}  // namespace farspan::testing
