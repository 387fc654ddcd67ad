// A communicator for tests that works on a device what it is asked for in host memory: inputs go to
// device tensors in the order of a compute stream, results come back in that order. So the suite of
// every transport runs on device tensors too. Every fourth operation stays on the host.
#pragma once

#include <list>
#include <memory>
#include <utility>
#include <vector>

#include "comm/communicator.h"
#include "core/device.h"

namespace farspan::testing {

class DeviceMirror final : public Communicator {
 public:
  DeviceMirror(std::unique_ptr<Communicator> inner, Device& device)
      : inner_(std::move(inner)), device_(device), compute_(device.make_stream()) {}

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  std::string_view transport() const override { return inner_->transport(); }
  Pending exchange(std::span<const Message> sends, std::span<const Message> recvs,
                   Stream&) override {
    Mirrored m(*this);
    std::vector<Message> there, back;
    for (const Message& s : sends) there.push_back({s.peer, m.input(s.buffer)});
    for (const Message& r : recvs) back.push_back({r.peer, m.output(r.buffer)});
    return m.run([&] { return inner_->exchange(there, back, *compute_); });
  }
  Pending shift(const ShiftArgs& args, Stream&) override {
    Mirrored m(*this);
    const ShiftArgs there{m.input(args.send), m.output(args.recv), args.offset};
    return m.run([&] { return inner_->shift(there, *compute_); });
  }
  Pending all_reduce(Tensor buffer, ReduceOp op, Stream&) override {
    Mirrored m(*this);
    const Tensor there = m.output(buffer);
    return m.run([&] { return inner_->all_reduce(there, op, *compute_); });
  }
  Pending all_gather(Tensor in, Tensor out, Stream&) override {
    Mirrored m(*this);
    const Tensor there = m.input(in), back = m.output(out);
    return m.run([&] { return inner_->all_gather(there, back, *compute_); });
  }
  Pending reduce_scatter(Tensor in, Tensor out, ReduceOp op, Stream&) override {
    Mirrored m(*this);
    const Tensor there = m.input(in), back = m.output(out);
    return m.run([&] { return inner_->reduce_scatter(there, back, op, *compute_); });
  }
  Pending all_to_all(Tensor in, Tensor out, Stream&) override {
    Mirrored m(*this);
    const Tensor there = m.input(in), back = m.output(out);
    return m.run([&] { return inner_->all_to_all(there, back, *compute_); });
  }
  Pending broadcast(Tensor buffer, int root, Stream&) override {
    Mirrored m(*this);
    const Tensor there = m.output(buffer);
    return m.run([&] { return inner_->broadcast(there, root, *compute_); });
  }
  void barrier() override { inner_->barrier(); }
  std::unique_ptr<Communicator> split(int color, int key) override {
    return std::make_unique<DeviceMirror>(inner_->split(color, key), device_);
  }
  void abort(ExitCode code, std::string_view reason) noexcept override {
    inner_->abort(code, reason);
  }
  CommCounters counters() const override { return inner_->counters(); }
  void reset_counters() override { inner_->reset_counters(); }
  std::string last_operation() const override { return inner_->last_operation(); }

 private:
  // The tensors of one operation.
  class Mirrored {
   public:
    explicit Mirrored(DeviceMirror& mirror)
        : mirror_(mirror), on_host_(mirror.num_operations_++ % 4 == 3) {}

    Tensor input(const Tensor& host) {
      if (on_host_ || host.empty()) return host;
      buffers_->push_back(mirror_.device_.allocate(host.bytes()));
      Tensor there = host;
      there.data = buffers_->back().data();
      there.device = buffers_->back().device();
      mirror_.device_.copy(there.data, host.data, host.bytes(), *mirror_.compute_);
      return there;
    }
    Tensor output(const Tensor& host) {
      const Tensor there = input(host);
      if (there.data != host.data) results_.emplace_back(there, host);
      return there;
    }
    template <typename Start>
    Pending run(const Start& start) {
      auto inner = std::make_shared<Pending>(start());
      return Pending([inner, buffers = buffers_, results = results_, &mirror = mirror_] {
        inner->wait();
        for (const auto& [there, host] : results)
          mirror.device_.copy(host.data, there.data, host.bytes(), *mirror.compute_);
        mirror.compute_->synchronize();
      });
    }

   private:
    DeviceMirror& mirror_;
    const bool on_host_;
    std::shared_ptr<std::list<Buffer>> buffers_ = std::make_shared<std::list<Buffer>>();
    std::vector<std::pair<Tensor, Tensor>> results_;  // on the device, on the host
  };

  std::unique_ptr<Communicator> inner_;
  Device& device_;
  std::unique_ptr<Stream> compute_;
  int num_operations_ = 0;
};

}  // namespace farspan::testing
