#include "device_timer.h"

#include <chrono>

namespace farspan::bench {
namespace {

class ClockTimer final : public DeviceTimer {
 public:
  explicit ClockTimer(Stream& stream) : stream_(stream) {}
  void begin() override {
    stream_.synchronize();
    begin_ = Clock::now();
  }
  double end() override {
    stream_.synchronize();
    return std::chrono::duration<double>(Clock::now() - begin_).count();
  }

 private:
  using Clock = std::chrono::steady_clock;
  Stream& stream_;
  Clock::time_point begin_;
};

}  // namespace

std::unique_ptr<DeviceTimer> make_device_timer(Backend& backend) {
  if (backend.device().id().kind == DeviceKind::kCuda)
    if (auto timer = make_cuda_timer(backend.stream())) return timer;
  return std::make_unique<ClockTimer>(backend.stream());
}

}  // namespace farspan::bench
