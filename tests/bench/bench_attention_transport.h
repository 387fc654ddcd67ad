// A communicator whose transfers can be made to wait, or left out, to see what each costs.
//
//   TransportControl control{.mode = TransportMode::kSerialized};
//   BenchTransport transport(world, control);      // Mesh mesh(transport, ...): all of its groups
#pragma once

#include <cstring>
#include <memory>
#include <utility>

#include "comm/communicator.h"

namespace farspan::bench {

enum class TransportMode : std::uint8_t {
  kOverlapped,  // as it is
  kSerialized,  // every operation is waited for where it begins
  kSilent,      // nothing moves: what would be received is zeros
};

struct TransportControl {
  TransportMode mode = TransportMode::kOverlapped;
  double (*clock)() = nullptr;
  double inside = 0;  // seconds, by `clock`, that silent operations spent writing zeros
  double waited = 0;  // seconds, by `clock`, spent in wait()
};

class BenchTransport final : public Communicator {
 public:
  BenchTransport(Communicator& inner, TransportControl& control)
      : inner_(&inner), control_(&control) {}
  BenchTransport(std::unique_ptr<Communicator> inner, TransportControl& control)
      : owned_(std::move(inner)), inner_(owned_.get()), control_(&control) {}

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  std::string_view transport() const override { return inner_->transport(); }

  Pending exchange(std::span<const Message> sends, std::span<const Message> recvs,
                   Stream& stream) override {
    if (control_->mode == TransportMode::kSilent) {
      for (const Message& m : recvs) silence(m.buffer);
      return {};
    }
    return begun(inner_->exchange(sends, recvs, stream));
  }
  Pending shift(const ShiftArgs& args, Stream& stream) override {
    return silent(args.recv) ? Pending() : begun(inner_->shift(args, stream));
  }
  Pending all_reduce(Tensor buffer, ReduceOp op, Stream& stream) override {
    return silent(buffer) ? Pending() : begun(inner_->all_reduce(buffer, op, stream));
  }
  Pending all_gather(Tensor in, Tensor out, Stream& stream) override {
    return silent(out) ? Pending() : begun(inner_->all_gather(in, out, stream));
  }
  Pending reduce_scatter(Tensor in, Tensor out, ReduceOp op, Stream& stream) override {
    return silent(out) ? Pending() : begun(inner_->reduce_scatter(in, out, op, stream));
  }
  Pending all_to_all(Tensor in, Tensor out, Stream& stream) override {
    return silent(out) ? Pending() : begun(inner_->all_to_all(in, out, stream));
  }
  Pending broadcast(Tensor buffer, int root, Stream& stream) override {
    return silent(buffer) ? Pending() : begun(inner_->broadcast(buffer, root, stream));
  }
  void barrier() override { inner_->barrier(); }

  std::unique_ptr<Communicator> split(int color, int key) override {
    return std::make_unique<BenchTransport>(inner_->split(color, key), *control_);
  }
  std::unique_ptr<Communicator> split_by(
      const std::function<SplitPlace(int rank)>& place) override {
    return std::make_unique<BenchTransport>(inner_->split_by(place), *control_);
  }

  void abort(ExitCode code, std::string_view reason) noexcept override {
    inner_->abort(code, reason);
  }
  CommCounters counters() const override { return inner_->counters(); }
  void reset_counters() override { inner_->reset_counters(); }
  std::string last_operation() const override { return inner_->last_operation(); }

 private:
  Pending begun(Pending pending) {
    TransportControl* control = control_;
    Pending timed([control, inner = std::make_shared<Pending>(std::move(pending))] {
      const double begin = control->clock();
      inner->wait();
      control->waited += control->clock() - begin;
    });
    if (control->mode == TransportMode::kSerialized) timed.wait();
    return timed;
  }
  bool silent(const Tensor& received) {
    if (control_->mode != TransportMode::kSilent) return false;
    silence(received);
    return true;
  }
  void silence(const Tensor& received) {
    if (received.empty()) return;
    const double begin = control_->clock();
    std::memset(received.data, 0, received.bytes());
    control_->inside += control_->clock() - begin;
  }

  std::unique_ptr<Communicator> owned_;
  Communicator* inner_;
  TransportControl* control_;
};

}  // namespace farspan::bench
