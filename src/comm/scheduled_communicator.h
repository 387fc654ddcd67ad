// What the CPU transports and dry share: from arguments to a checked call with its schedule.
#pragma once

#include <atomic>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "comm/communicator.h"
#include "comm/link.h"
#include "comm/operation.h"

namespace farspan {

class ScheduledCommunicator : public Communicator {
 public:
  int rank() const final { return rank_; }
  int size() const final { return size_; }
  Pending exchange(std::span<const Message> sends, std::span<const Message> recvs,
                   Stream& stream) final;
  Pending shift(const ShiftArgs& args, Stream& stream) final;
  Pending all_reduce(Tensor buffer, ReduceOp op, Stream& stream) final;
  Pending all_gather(Tensor in, Tensor out, Stream& stream) final;
  Pending reduce_scatter(Tensor in, Tensor out, ReduceOp op, Stream& stream) final;
  Pending all_to_all(Tensor in, Tensor out, Stream& stream) final;
  Pending broadcast(Tensor buffer, int root, Stream& stream) final;
  void barrier() final;
  CommCounters counters() const final { return ledger_->counters(); }
  void reset_counters() final { ledger_->reset_counters(); }
  std::string last_operation() const final { return ledger_->last_operation(); }

 protected:
  ScheduledCommunicator(int rank, int size);
  virtual Pending launch(Plan plan) = 0;
  // CHECKs that this transport can work on the tensor.
  virtual void check_device(const Tensor& tensor) const = 0;
  // Numbers the call and launches it.
  Pending begin(Plan plan);

  const std::shared_ptr<Ledger> ledger_ = std::make_shared<Ledger>();
  std::uint64_t sequence_ = 0;

 private:
  int rank_, size_;
};

// A communicator of CPU tensors over a link: transports self, thread and mpi.
class LinkedCommunicator final : public ScheduledCommunicator {
 public:
  explicit LinkedCommunicator(std::shared_ptr<Link> link);
  std::string_view transport() const override { return link_->transport(); }
  std::unique_ptr<Communicator> split(int color, int key) override;
  void abort(ExitCode code, std::string_view reason) noexcept override {
    link_->abort(code, reason);
  }

 private:
  Pending launch(Plan plan) override;
  void check_device(const Tensor& tensor) const override;

  std::shared_ptr<Link> link_;
};

}  // namespace farspan
