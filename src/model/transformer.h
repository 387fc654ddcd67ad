// A decoder-only language model of the Llama family over this rank's tokens.
//
//   ParameterStore parameters;
//   Transformer model(config.model(), parameters, *attention);
//   parameters.allocate(...);
//   model.forward_backward(batch, sums, policy, ctx);   // adds to gradients and sums
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "model/block.h"
#include "model/loss_head.h"
#include "model/position.h"
#include "parallel/long_attention.h"

namespace farspan {

// One micro-batch's local tokens on the device.
struct TokenTensors {
  Tensor tokens;     // (T) i32
  Tensor labels;     // (T) i32, shifted; -100 = not scored
  Tensor positions;  // (T) i32
  // Where frequencies depend on the documents' lengths (length_dependent_rotary): the tables, and
  // which of them each token reads. Without ids inv_freq is one table for all tokens. Layers that
  // are not scaled (layer_is_scaled) read neither.
  Tensor inv_freq = {};   // (K, D / 2) f64, or (D / 2) without ids
  Tensor table_ids = {};  // (T) i32
};

// Copies tables of frequencies to the device: (num_tables, D / 2) f64, or (D / 2) for one table
// without ids. Waits for the device.
Tensor put_tables(Arena& arena, Backend& backend, const std::vector<double>& inv_freq,
                  std::int64_t num_tables);

class Transformer {
 public:
  // Adds its parameters to `parameters`, which must outlive it, as must `attention`.
  Transformer(const config::Model& model, DType compute, ParameterStore& parameters,
              const Attention& attention);

  // Device copies of the position tables; from an arena that lives as long as the model.
  void allocate(Arena& arena, Backend& backend);

  // From the next pass on: window, layer types, rotary base and scaling of `model`, which otherwise
  // is the one that it was made with, and another strategy of attention. Weights stay. Between
  // passes, after allocate(); waits for the device.
  void change(const config::Model& model, const Attention& attention, Backend& backend);

  void forward_backward(const TokenTensors& batch, const LossSums& sums,
                        const RecomputePolicy& policy, const StepContext& ctx) const;
  // Loss without gradients; nothing is kept. nll (T) f32, written when defined.
  void forward(const TokenTensors& batch, const LossSums& sums, Tensor nll,
               const StepContext& ctx) const;
  // f32 logits (1, V) of the token in local row `row` (one rank, generation).
  void logits(const TokenTensors& batch, std::int64_t row, Tensor logits,
              const StepContext& ctx) const;

  // f32 logits of the tokens in these local rows, some at a time: take(i, logits) is given those of
  // rows[i], rows[i + 1], ..., (n, V), in memory of ctx.scratch that goes when it returns. A rank
  // without rows takes part too.
  using TakeLogits = std::function<void(std::int64_t first, const Tensor& logits)>;
  void row_logits(const TokenTensors& batch, std::span<const std::int64_t> rows,
                  const TakeLogits& take, const StepContext& ctx) const;

  // How all layers turn queries and keys; inv_freq is undefined where nothing is turned. CHECKs
  // that they turn them alike: that there are no layers without the scaling that others have.
  Rotary rotary() const;

 private:
  // Of a micro-batch: what layers that are scaled read, and the others.
  struct LayerTables {
    RopeTables scaled, unscaled;
  };

  void write_tables(Backend& backend);
  // x (T, C) compute: tokens and, where the model has such, positions; temporaries from scratch.
  void embed(const TokenTensors& batch, Tensor x, const StepContext& ctx) const;
  void embed_backward(const TokenTensors& batch, Tensor grad, const StepContext& ctx) const;
  LayerTables layer_tables(const TokenTensors& batch, Arena& arena, const StepContext& ctx) const;
  const RopeTables& of_layer(const LayerTables& tables, std::size_t layer) const {
    return scaled_[layer] ? tables.scaled : tables.unscaled;
  }
  void set_positions(const config::Model& model);
  // The residual stream after the last layer; from ctx.scratch, keeping nothing else.
  Tensor forward_hidden(const TokenTensors& batch, const StepContext& ctx) const;

  config::Model config_;
  DType compute_;
  PositionTable table_;
  RotaryTable unscaled_;
  std::vector<bool> scaled_;             // by layer: reads table_, else unscaled_
  Tensor inv_freq_, unscaled_inv_freq_;  // (D / 2) f64; undefined when nothing is rotated
  BiasTables bias_;
  Tensor sinusoid_;  // (C / 2) f64; undefined without sinusoidal positions
  Parameter* embedding_;
  Parameter* positions_ = nullptr;  // (max_position_embeddings, C) of learned positions
  std::vector<Block> blocks_;
  std::unique_ptr<LossHead> head_;
};

}  // namespace farspan
