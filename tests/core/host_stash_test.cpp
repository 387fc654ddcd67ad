#include "core/host_stash.h"

#include <gtest/gtest.h>

#include <cstring>
#include <deque>
#include <functional>
#include <random>

namespace farspan {
namespace {

// A device whose queues do nothing until they are waited for, and then take turns at random, held
// back by events only: what CUDA may do.
class LazyDevice final : public Device {
 public:
  explicit LazyDevice(std::uint64_t seed) : rng_(seed) {}

  class Queue final : public Stream {
   public:
    explicit Queue(LazyDevice& device) : device_(device) {}
    void synchronize() override {
      while (!work_.empty()) device_.turn();
    }
    // Work that says whether it could run.
    void push(std::function<bool()> work) { work_.push_back(std::move(work)); }
    bool try_one() {
      if (work_.empty() || !work_.front()()) return false;
      work_.pop_front();
      return true;
    }

   private:
    LazyDevice& device_;
    std::deque<std::function<bool()>> work_;
  };

  class Mark final : public Event {
   public:
    void record(Stream& stream) override {
      const int mark = ++recorded_;
      dynamic_cast<Queue&>(stream).push([done = done_, mark] {
        *done = std::max(*done, mark);
        return true;
      });
    }
    void order_before(Stream& stream) override {
      dynamic_cast<Queue&>(stream).push([done = done_, mark = recorded_] { return *done >= mark; });
    }

   private:
    int recorded_ = 0;
    std::shared_ptr<int> done_ = std::make_shared<int>(0);  // outlives the event, as in CUDA
  };

  DeviceId id() const override { return {DeviceKind::kCpu, 0}; }
  Buffer allocate(std::size_t bytes) override { return host_->allocate(bytes); }
  Buffer allocate_host(std::size_t bytes) override { return host_->allocate(bytes); }
  void copy(std::byte* dst, const std::byte* src, std::size_t bytes, Stream& stream) override {
    dynamic_cast<Queue&>(stream).push([=] {
      std::memcpy(dst, src, bytes);
      return true;
    });
  }
  std::unique_ptr<Stream> make_stream() override {
    auto queue = std::make_unique<Queue>(*this);
    queues_.push_back(queue.get());
    return queue;
  }
  std::unique_ptr<Event> make_event() override { return std::make_unique<Mark>(); }

  // One queue runs as much as it may.
  void turn() {
    Queue& queue = *queues_[rng_() % queues_.size()];
    while (rng_() % 4 != 0 && queue.try_one()) {
    }
  }

 private:
  std::unique_ptr<Device> host_ = make_cpu_device();
  std::mt19937_64 rng_;
  std::vector<Queue*> queues_;
};

constexpr int kLayers = 7;
const Shape kShape{16};

float value(int pass, int layer) { return static_cast<float>(100 * pass + layer); }

// Forward layers fill their tensor and read it; backward layers read it again, after others have
// used the same buffer.
void run_pass(HostStash& stash, LazyDevice::Queue& compute, Arena& arena, int pass,
              std::vector<float>& seen) {
  auto scope = arena.scope();
  const auto read = [&](const Tensor& t) {
    compute.push([t, &seen] {
      seen.push_back(t.ptr<float>()[15]);
      return true;
    });
  };
  std::vector<Tensor> kept;
  stash.begin(kLayers, arena, compute);
  for (int layer = 0; layer < kLayers; ++layer) {
    const Tensor t = stash.take("x", layer, DType::kF32, kShape);
    kept.push_back(t);
    compute.push([t, v = value(pass, layer)] {
      std::fill_n(t.ptr<float>(), 16, v);
      return true;
    });
    stash.put("x", layer);
    read(t);
  }
  for (int layer = kLayers; layer-- > 0;) {
    stash.arrive(layer);
    read(kept[static_cast<std::size_t>(layer)]);
    stash.release(layer);
  }
  stash.end();
}

TEST(HostStash, EventsAloneKeepEveryLayersTensor) {
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    LazyDevice device(seed);
    const auto compute = device.make_stream();
    Arena arena(device, 1 << 12, "activations");
    HostStash stash(device, 1 << 12);
    std::vector<float> seen, expected;
    for (int pass = 0; pass < 2; ++pass) {  // the second reuses buffers, host memory and events
      run_pass(stash, dynamic_cast<LazyDevice::Queue&>(*compute), arena, pass, seen);
      for (int i = 0; i < 2 * kLayers; ++i)
        expected.push_back(value(pass, i < kLayers ? i : 2 * kLayers - 1 - i));
    }
    compute->synchronize();
    ASSERT_EQ(seen, expected) << "seed " << seed;
    EXPECT_EQ(arena.high_water(), 2 * Arena::kAlignment);
    EXPECT_EQ(stash.host().high_water(), (kLayers - 2) * Arena::kAlignment);
  }
}

TEST(HostStash, MisuseIsNoticed) {
  const auto device = make_cpu_device();
  const auto stream = device->make_stream();
  Arena arena(*device, 1 << 12, "activations");
  HostStash stash(*device, 1 << 12);
  EXPECT_THROW(stash.take("x", 0, DType::kF32, kShape), std::exception);
  stash.begin(4, arena, *stream);
  EXPECT_THROW(stash.take("x", 4, DType::kF32, kShape), std::exception);
  stash.take("x", 0, DType::kF32, kShape);
  EXPECT_THROW(stash.put("x", 1), std::exception);
  EXPECT_THROW(stash.put("y", 0), std::exception);
  stash.put("x", 0);
  stash.take("x", 1, DType::kF32, kShape);
  EXPECT_THROW(stash.take("x", 3, DType::kF32, kShape), std::exception);
  stash.put("x", 1);
  EXPECT_THROW(stash.take("x", 2, DType::kF32, {17}), std::exception);
}

}  // namespace
}  // namespace farspan
