#include "train/invariant_step.h"

#include "train/block_kernels.h"

namespace farspan {

class InvariantStep::BlockBackend final : public Backend {
 public:
  explicit BlockBackend(Backend& inner) : inner_(inner), kernels_(inner.kernels()) {}
  Device& device() override { return inner_.device(); }
  BlockKernels& kernels() override { return kernels_; }
  Stream& stream() override { return inner_.stream(); }
  std::string description() const override { return inner_.description() + ", block by block"; }
  DeviceKind target() override { return inner_.target(); }
  std::vector<MemoryItem> workspaces() const override { return inner_.workspaces(); }
  WorkCounters work() const override { return inner_.work(); }
  void reset_work() override { inner_.reset_work(); }

 private:
  Backend& inner_;
  BlockKernels kernels_;
};

namespace {

// Three runs of `all` from `begin` on: n, n and 1 elements.
ExactSum sum_in(const Tensor& all, std::int64_t begin, std::int64_t n) {
  return {all.rows(begin, n), all.rows(begin + n, n), all.rows(begin + 2 * n, 1)};
}

}  // namespace

InvariantStep::InvariantStep(Backend& backend, Arena& arena, Tensor flat_gradients, Tensor loss_sum,
                             Tensor evaluation_loss_sum)
    : backend_(backend),
      flat_gradients_(flat_gradients),
      loss_sum_(loss_sum),
      evaluation_loss_sum_(evaluation_loss_sum),
      block_backend_(std::make_unique<BlockBackend>(backend)) {
  const std::int64_t n = flat_gradients.numel();
  all_ = arena.take(DType::kI64, {2 * n + 4}, "invariant.sums");
  gradients_ = sum_in(all_, 0, n);
  loss_ = sum_in(all_, 2 * n + 1, 1);
  evaluation_all_ = arena.take(DType::kI64, {3}, "invariant.evaluation");
  evaluation_loss_ = sum_in(evaluation_all_, 0, 1);
  backend_.kernels().fill({.dst = evaluation_all_, .value = 0}, backend_.stream());
  BlockKernels& kernels = block_backend_->kernels();
  kernels.redirect(flat_gradients, gradients_);
  kernels.redirect(loss_sum, loss_);
  kernels.redirect(evaluation_loss_sum, evaluation_loss_);
}

InvariantStep::~InvariantStep() = default;

Backend& InvariantStep::backend() { return *block_backend_; }

void InvariantStep::begin() {
  backend_.kernels().fill({.dst = all_, .value = 0}, backend_.stream());
}

void InvariantStep::begin_pass(std::span<const std::int64_t> row_blocks, Arena& scratch) {
  block_backend_->kernels().begin_pass(row_blocks, scratch);
}

void InvariantStep::reduce(Communicator& world) {
  Stream& stream = backend_.stream();
  world.all_reduce(all_, ReduceOp::kSum, stream).wait();
  backend_.kernels().exact_read({.sum = gradients_, .dst = flat_gradients_}, stream);
  backend_.kernels().exact_read({.sum = loss_, .dst = loss_sum_}, stream);
}

void InvariantStep::reduce_evaluation(Communicator& world) {
  Stream& stream = backend_.stream();
  world.all_reduce(evaluation_all_, ReduceOp::kSum, stream).wait();
  backend_.kernels().exact_read({.sum = evaluation_loss_, .dst = evaluation_loss_sum_}, stream);
  backend_.kernels().fill({.dst = evaluation_all_, .value = 0}, stream);
}

}  // namespace farspan
