// Attention over sequences that are spread across ranks. One class per strategy, all over the same
// inner kernel and driven by an AttentionPlan; the model does not know which one it runs.
//
// Legend: T local tokens   Hq query heads   Hkv key/value heads   D head dim
#pragma once

#include <memory>
#include <string_view>

#include "parallel/step_context.h"

namespace farspan {

struct AttentionInputs {
  Tensor q;     // (T, Hq, D) compute
  Tensor k, v;  // (T, Hkv, D) compute
};

// Gradients in f32, overwritten.
struct AttentionGradients {
  Tensor dq;      // (T, Hq, D)
  Tensor dk, dv;  // (T, Hkv, D)
};

class Attention {
 public:
  virtual ~Attention() = default;
  // out (T, Hq, D) compute; lse (Hq, T) f32, natural logarithm. Scores are scaled by 1 / sqrt(D).
  virtual void forward(const AttentionInputs& in, Tensor out, Tensor lse,
                       const StepContext& ctx) const = 0;
  virtual void backward(const AttentionInputs& in, Tensor out, Tensor lse, Tensor dout,
                        const AttentionGradients& grads, const StepContext& ctx) const = 0;
};

// "ring". Throws Error(kUsage) for a strategy that does not exist.
std::unique_ptr<Attention> make_attention(std::string_view strategy);

}  // namespace farspan
