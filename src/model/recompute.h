// Which activations survive from the forward to the backward pass. The only place where a policy's
// rules stand; blocks ask keeps(), dry runs count what follows.
//
//   none            everything that backward reads
//   selective       recompute norm outputs and the SwiGLU product
//   full            keep each layer's input, recompute the layer (attention and its transfers too)
//   full+attention  keep each layer's input, attention's output and log-sum-exp; attention is never
//                   recomputed
//
// Recomputation repeats the same kernels on the same inputs: gradients are bitwise equal under all.
#pragma once

#include <cstdint>
#include <string_view>

namespace farspan {

enum class Activation : std::uint8_t {
  kNorm,       // the two norms' outputs and 1/rms
  kQkv,        // rotated queries and keys, values
  kAttention,  // attention's output and log-sum-exp
  kMiddle,     // the residual stream between attention and MLP
  kGateUp,     // the MLP's two projections
  kSwiGlu,     // their product
};

class RecomputePolicy {
 public:
  // "none", "selective", "full", "full+attention"; throws Error(kUsage) for one that is not built.
  static RecomputePolicy from(std::string_view name);
  // Keeps nothing: for evaluation, where no backward follows.
  static RecomputePolicy forward_only() { return RecomputePolicy(0); }

  bool keeps(Activation activation) const {
    return (kept_ >> static_cast<unsigned>(activation) & 1u) != 0;
  }

 private:
  explicit RecomputePolicy(unsigned kept) : kept_(kept) {}
  unsigned kept_;
};

}  // namespace farspan
