// cuDNN's scaled dot-product attention, one call at a time: cudnn_engine.cpp, or
// cudnn_engine_absent.cpp in a build without cuDNN's frontend headers (CMake chooses).
//
//   const CudnnFacts facts = cudnn_facts();
//   auto engine = make_sdpa_engine();                         // only where facts.absent is empty
//   engine->forward(shape, {.q = q, ...}, workspace, stream);  // workspace:
//   engine->workspace(shape)
//
// A plan is made at the first call of a shape, which takes up to seconds, and kept; kMostPlans are.
// cuDNN is loaded when it is first asked for, so the program starts where there is none.
#pragma once

#include <cuda_runtime.h>

#include <compare>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "kernels/cudnn_support.h"

namespace farspan::cuda {

// Q, O and their gradients are (batch, q_len, q_heads, head_dim), K and V (batch, k_len, kv_heads,
// head_dim), all bf16; statistics (batch, q_heads, q_len) f32, dense, the natural logarithm of the
// sum of exponentials. Steps in elements: of a row, and of a sequence.
struct SdpaShape {
  bool backward = false;
  bool deterministic = false;  // backward only
  std::int64_t batch = 0, q_heads = 0, kv_heads = 0, q_len = 0, k_len = 0, head_dim = 0;
  std::int64_t q_row = 0, q_sequence = 0;      // of q and dout, and of out in backward
  std::int64_t k_row = 0, k_sequence = 0;      // of k and v
  std::int64_t out_row = 0, out_sequence = 0;  // of out in forward
  CudnnMask mask = CudnnMask::kFull;
  std::int64_t window = 0;
  float scale = 1;
  // NOLINTNEXTLINE(modernize-use-nullptr): the zero that the compiler compares with
  auto operator<=>(const SdpaShape&) const = default;
};

// Device addresses. Gradients are written dense, by rows.
struct SdpaTensors {
  const void *q = nullptr, *k = nullptr, *v = nullptr;
  void* out = nullptr;    // written by forward, read by backward
  void* stats = nullptr;  // likewise
  const void* dout = nullptr;
  void *dq = nullptr, *dk = nullptr, *dv = nullptr;
};

class SdpaEngine {
 public:
  static constexpr std::size_t kMostPlans = 64;

  virtual ~SdpaEngine() = default;
  // Bytes that a call of this shape needs. Throws Error(kUsage) when cuDNN has no plan for it.
  virtual std::size_t workspace(const SdpaShape& shape) = 0;
  // Enqueues the call. `space`: workspace(shape) bytes at a multiple of 256.
  virtual void run(const SdpaShape& shape, const SdpaTensors& tensors, void* space,
                   cudaStream_t stream) = 0;
};

// cuDNN here and now, and the current GPU. Loads the library.
CudnnFacts cudnn_facts();
std::unique_ptr<SdpaEngine> make_sdpa_engine();

}  // namespace farspan::cuda
