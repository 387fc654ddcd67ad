// What self, thread, mpi and dry share: from arguments to a checked call with its schedule.
#pragma once

#include <atomic>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "comm/communicator.h"
#include "comm/link.h"
#include "comm/operation.h"
#include "comm/staging.h"

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
  // The schedule over the tensors as they are, or over what stands for them.
  virtual std::unique_ptr<Schedule> place(const Work& work, Stream& stream);
  static std::unique_ptr<Schedule> place_as_it_is(const Work& work);
  // Numbers the call and launches it.
  Pending begin(Plan plan);
  Pending begin(Plan plan, const Work& work, Stream& stream);

  const std::shared_ptr<Ledger> ledger_ = std::make_shared<Ledger>();
  std::uint64_t sequence_ = 0;

 private:
  int rank_, size_;
};

// A communicator over a link: transports self, thread and mpi. With `staging` also of tensors of
// its device; groups split from it have a staging of their own.
class LinkedCommunicator final : public ScheduledCommunicator {
 public:
  explicit LinkedCommunicator(std::shared_ptr<Link> link,
                              std::shared_ptr<Staging> staging = nullptr);
  std::string_view transport() const override { return link_->transport(); }
  std::unique_ptr<Communicator> split(int color, int key) override;
  // The same group, for tensors of `device` too. Collective.
  std::unique_ptr<Communicator> for_device(Device& device, StagingOptions options);
  bool moves_device_memory() const { return link_->moves_device_memory(); }
  bool failed() const override { return link_->failed(); }
  void abort(ExitCode code, std::string_view reason) noexcept override {
    link_->abort(code, reason);
  }

 private:
  Pending launch(Plan plan) override;
  void check_device(const Tensor& tensor) const override;
  std::unique_ptr<Schedule> place(const Work& work, Stream& stream) override;
  std::unique_ptr<Link> split_link(int color, int key);

  std::shared_ptr<Link> link_;
  std::shared_ptr<Staging> staging_;
};

}  // namespace farspan
