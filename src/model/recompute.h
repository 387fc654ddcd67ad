// Which activations survive from the forward to the backward pass, and where. The only place where
// a policy's rules stand; blocks ask of(), dry runs count what follows.
//
//   none            everything that backward reads
//   selective       recompute norm outputs and the SwiGLU product
//   full            keep each layer's input, recompute the layer (attention and its transfers too)
//   full+attention  keep each layer's input, attention's output and log-sum-exp; attention is never
//                   recomputed
//   offload         as full+attention, and what is kept waits in host memory: the device holds two
//                   layers' (core/host_stash.h). In bf16 a token of a layer moves 4 C + 4 Hq bytes
//                   each way; with the 8B shape's 26 C^2 FLOPs forward at 600 TFLOP/s that hides
//                   behind 23 GB/s, with attention behind less
//
// Recomputation repeats the same kernels on the same inputs: gradients are bitwise equal under all.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string_view>

namespace farspan {

enum class Activation : std::uint8_t {
  kInput,      // the residual stream before the layer
  kNorm,       // the two norms' outputs and 1/rms
  kQkv,        // rotated queries and keys, values
  kAttention,  // attention's output and log-sum-exp
  kMiddle,     // the residual stream between attention and MLP
  kGateUp,     // the MLP's two projections
  kSwiGlu,     // their product
};
inline constexpr std::size_t kNumActivations = 7;

enum class Keep : std::uint8_t { kRecompute, kSave, kOffload };

class RecomputePolicy {
 public:
  // The names above; throws Error(kUsage) for any other.
  static RecomputePolicy from(std::string_view name);
  // Keeps nothing: for evaluation, where no backward follows.
  static RecomputePolicy forward_only() { return {}; }

  Keep of(Activation activation) const { return keep_[static_cast<std::size_t>(activation)]; }
  // Whether anything waits in host memory.
  bool offloads() const;

 private:
  RecomputePolicy() = default;
  RecomputePolicy& set(Keep keep, std::initializer_list<Activation> activations);
  std::array<Keep, kNumActivations> keep_{};  // kRecompute
};

}  // namespace farspan
