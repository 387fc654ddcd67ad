// Flash attention on the CPU, forward and backward, over slices of the score matrix
// (kernels/args.h: AttentionForwardArgs, AttentionDeltaArgs, AttentionBackwardArgs).
//
//   cpu::AttentionEngine engine({.isa = best_cpu_isa(), .num_threads = 2});
//   engine.forward({.q = q, .k = k, .v = v, ..., .slices = slices, .first = true, .last = true});
//
// Inputs are all f32 or all bf16; scores, sums, state and gradients are f32. Probabilities and
// score gradients are rounded to bf16 only where the instruction set multiplies bf16 (avx512_bf16,
// amx). Head dims 1 to 256; multiples of the vector width are fastest. GQA reads KV in place.
//
// Results are bitwise repeatable and do not depend on num_threads: who computes a tile is dynamic,
// the order in which sums grow is not. They differ between instruction sets within tolerance.
// Method: Dao et al. 2022 (FlashAttention), Milakov & Gimelshein 2018; README.md of this folder.
#pragma once

#include <memory>

#include "kernels/args.h"
#include "kernels/backend.h"

namespace farspan::cpu {

struct AttentionConfig {
  CpuIsa isa = CpuIsa::kAuto;
  int num_threads = 1;
  // Runs the bf16 kernel of kAmx on tile registers emulated in plain code, slowly, on processors
  // with AVX-512 BF16 (isa = kAvx512Bf16). For tests on machines without AMX.
  bool emulate_amx_tiles = false;
};

// Used from one thread at a time. Holds workspace for each of its threads (about 1 MB), grown on
// the first call of a shape; no call of a known shape allocates. (The slices of a call are part of
// its shape here: more of them may grow the task lists.)
class AttentionEngine {
 public:
  // Throws Error(kUsage) when this processor does not run config.isa.
  explicit AttentionEngine(AttentionConfig config);
  AttentionEngine(AttentionEngine&&) noexcept;
  AttentionEngine& operator=(AttentionEngine&&) noexcept;
  ~AttentionEngine();

  // Never kAuto.
  CpuIsa isa() const;

  // CHECKs shapes, dtypes, slices within their tensors, scale > 0.
  void forward(const AttentionForwardArgs& args);
  void delta(const AttentionDeltaArgs& args);
  void backward(const AttentionBackwardArgs& args);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace farspan::cpu
