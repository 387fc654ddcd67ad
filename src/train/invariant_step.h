// The sums of a training step so that their bits depend neither on the number of ranks nor on how
// sequences were dealt out to them (parallel.invariant; docs/adr/0006-invariant-mode.md).
//
//   InvariantStep exact(backend, arena, flat_gradients, loss_sum, evaluation_loss_sum);
//   exact.begin();
//   exact.begin_pass(micro_batch.row_blocks, scratch);
//   model.forward_backward(..., {.backend = exact.backend(), ...});   // for each micro-batch
//   exact.reduce(world);                     // flat_gradients and loss_sum: sums over all ranks
//
// Work is cut into blocks of tokens counted from the start of each sequence: a block lies whole on
// one rank. backend() computes matrix products block by block, and adds each block's share of a
// gradient or of the loss to fixed-point sums, whose result is the same in any order.
#pragma once

#include <memory>
#include <span>

#include "comm/communicator.h"
#include "core/arena.h"
#include "kernels/backend.h"

namespace farspan {

class InvariantStep {
 public:
  // `arena` lives as long as this object: 16 bytes for each gradient. flat_gradients (n) f32;
  // loss_sum and evaluation_loss_sum (1) f64. Additions to them arrive with reduce.
  InvariantStep(Backend& backend, Arena& arena, Tensor flat_gradients, Tensor loss_sum,
                Tensor evaluation_loss_sum);
  ~InvariantStep();

  // What the model runs on between begin_pass and the end of the pass.
  Backend& backend();

  // Gradients and loss from zero.
  void begin();
  // `row_blocks` as StepContext's; both must outlive the pass.
  void begin_pass(std::span<const std::int64_t> row_blocks, Arena& scratch);
  // Sums over the world into flat_gradients and loss_sum. Collective.
  void reduce(Communicator& world);
  // Sum over the world into evaluation_loss_sum, which then starts from zero. Collective.
  void reduce_evaluation(Communicator& world);

 private:
  class BlockBackend;

  Backend& backend_;
  Tensor flat_gradients_, loss_sum_, evaluation_loss_sum_;
  Tensor all_;  // i64: gradients and loss in one piece, for one all_reduce
  ExactSum gradients_, loss_;
  Tensor evaluation_all_;  // i64
  ExactSum evaluation_loss_;
  std::unique_ptr<BlockBackend> block_backend_;
};

}  // namespace farspan
