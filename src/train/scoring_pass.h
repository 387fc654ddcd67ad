// One forward pass whose scores are read back: what the engines of training and of inference run,
// and their dry twins.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "model/transformer.h"

namespace farspan {

// Of a local row of the micro-batch: (V) f32.
using TakeRowLogits = std::function<void(std::int64_t row, std::span<const float> logits)>;

// nats of each label, NaN where none is scored, in local order; added to `sums` as well. Collective
// over the context ranks; waits for the device.
std::vector<float> nll_pass(const Transformer& model, const TokenTensors& batch,
                            const LossSums& sums, const StepContext& ctx);
// The same with sums that nobody reads.
std::vector<float> nll_pass(const Transformer& model, const TokenTensors& batch,
                            const StepContext& ctx);
// Calls `take` for each of `rows`, in their order. Likewise.
void logits_pass(const Transformer& model, const TokenTensors& batch,
                 std::span<const std::int64_t> rows, const TakeRowLogits& take,
                 const StepContext& ctx);

}  // namespace farspan
