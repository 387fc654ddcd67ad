// Seconds of work on a device, for programs that measure: events of the device's queue, or the
// clock on the CPU.
//
//   const auto timer = make_device_timer(*backend);
//   timer->begin();  kernels.matmul(args, stream);  const double seconds = timer->end();
#pragma once

#include <memory>

#include "kernels/backend.h"

namespace farspan::bench {

class DeviceTimer {
 public:
  virtual ~DeviceTimer() = default;
  virtual void begin() = 0;
  // Waits for what was enqueued since begin(), and says how long it ran.
  virtual double end() = 0;
};

// For backend.stream(). `backend` must outlive the timer.
std::unique_ptr<DeviceTimer> make_device_timer(Backend& backend);

// In builds with CUDA (device_timer_cuda.cpp); null in others.
std::unique_ptr<DeviceTimer> make_cuda_timer(Stream& stream);

}  // namespace farspan::bench
