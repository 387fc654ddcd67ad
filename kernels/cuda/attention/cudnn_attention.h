// Attention by cuDNN where cudnn_support.h says that it does the call: which calls, the pieces they
// are cut into, and what it takes to put the pieces' results where the caller wants them.
//
//   CudnnAttention cudnn(device, AttentionKernel::kAuto, cudnn_facts(), make_sdpa_engine);
//   if (!cudnn.forward(args, stream, own)) own(args);     // own: our kernels
//   if (!cudnn.backward(args, stream)) own_backward(args);
//
// Forward: where cuDNN's output is the rank's whole result it is written where it belongs.
// Elsewhere (a ring of several hops) each piece's output, rounded to bf16, is merged into the f32
// state that our kernels carry, so that hops of one row may differ in kernel.
// Backward: from the global output and log-sum-exps every piece's gradients are exact up to cuDNN's
// rounding to bf16; they are added to the f32 sums.
//
// kAuto takes cuDNN where our kernels are much slower (Hopper and later) and cuDNN has a plan, kOwn
// never, kCudnn always: it throws Error(kUsage) with the reason where cuDNN does not do a call.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "core/device.h"
#include "kernels/backend.h"
#include "kernels/cuda/attention/cudnn_engine.h"

namespace farspan::cuda {

class CudnnAttention {
 public:
  using MakeEngine = std::function<std::unique_ptr<SdpaEngine>()>;
  using OwnForward = std::function<void(const AttentionForwardArgs&)>;

  // `device` must outlive this object. The engine is made at the first call that takes it.
  CudnnAttention(Device& device, AttentionKernel wanted, CudnnFacts facts, MakeEngine make_engine);

  // False: not done, the caller's kernels are to do it. `own` begins and ends the state of rows.
  bool forward(const AttentionForwardArgs& args, Stream& stream, const OwnForward& own);
  bool backward(const AttentionBackwardArgs& args, Stream& stream);

  // "cuDNN 9.19.0 where it can": for Backend::description().
  std::string description() const;
  // As Backend::take_notes: the first call of each kind, and who took it.
  std::vector<std::string> take_notes();
  // No graph captured so far will run again: memory kept for them goes.
  void release_captured();

 private:
  // What has been said already.
  enum class Said : std::uint8_t {
    kForwardWhole,
    kForwardMerged,
    kForwardOwn,
    kBackward,
    kBackwardOwn,
    kCount
  };

  bool take(const CudnnAnswer& answer, const char* pass, Said own);
  // Whether cuDNN has a plan for the shape; with kAuto a refusal is remembered, else thrown.
  bool plan(const SdpaShape& shape, const char* pass, Said own);
  void say(Said what, std::string text);
  void forward_piece(const AttentionForwardArgs& args, const CudnnPiece& piece, bool whole,
                     Stream& stream);
  void backward_piece(const AttentionBackwardArgs& args, const CudnnPiece& piece,
                      std::int64_t kv_head, std::int64_t num_kv_heads, Stream& stream);
  // At least `bytes` of the stream's own workspace. What a captured call was given stays until
  // release_captured().
  std::byte* workspace(std::size_t bytes, const Stream& stream);

  Device& device_;
  AttentionKernel wanted_;
  CudnnFacts facts_;
  MakeEngine make_engine_;
  std::unique_ptr<SdpaEngine> engine_;
  struct Space {
    Buffer buffer;
    bool captured = false;
  };
  std::map<void*, Space> workspaces_;  // by queue
  std::vector<Buffer> captured_;       // too small since, and named by graphs
  std::set<SdpaShape> refused_;        // by cuDNN, though cudnn_support.h has no reason
  std::array<bool, static_cast<std::size_t>(Said::kCount)> said_{};
  std::vector<std::string> notes_;
};

}  // namespace farspan::cuda
