// Streams and events of the emulated device. Work waits in its stream until someone synchronises or
// asks; then the heads of all streams run in a random order that only streams and events restrict,
// so that work which relies on an event that nobody recorded comes too early or too late. Now and
// then some work runs as soon as it is given.
//
//   Runtime& r = runtime();
//   r.enqueue(stream, {.run = [=] { ... }});
//   r.synchronize(stream);
//
// Errors of kernels are thrown by the call in which they ran; where that call is made by
// destructors (cudaFree), by the next one. Safe to use from any host thread.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "support/simt/random.h"

struct CUstream_st;
struct CUevent_st;

namespace farspan::simt {

// A place in a stream that may have been reached.
struct Mark {
  bool reached = false;
};

struct Work {
  std::function<void()> run{};
  std::shared_ptr<Mark> after{};  // starts once this is reached
  std::shared_ptr<Mark> mark{};   // reached when this is done
  bool on_host = false;           // a callback: runs without the device, which goes on
};

class Runtime {
 public:
  Runtime();

  CUstream_st* make_stream();
  void destroy_stream(CUstream_st* stream);  // its work is still done
  void enqueue(CUstream_st* stream, Work work);
  // Capture: work given to the stream from now on is kept instead, and end_capture() hands it out,
  // to be given again as often as one likes. The calls of the capturing host thread that CUDA
  // allows only outside are refused by the interface (runtime_api.cpp), events among them: a
  // capture here is of one stream.
  void begin_capture(CUstream_st* stream);
  std::vector<Work> end_capture(CUstream_st* stream);
  bool is_capturing(CUstream_st* stream);
  // The mark of all work that the stream holds now.
  std::shared_ptr<Mark> mark(CUstream_st* stream);

  void synchronize(CUstream_st* stream);
  void synchronize(const std::shared_ptr<Mark>& mark);
  void synchronize_all();
  bool idle(CUstream_st* stream);  // does some work first
  bool reached(const std::shared_ptr<Mark>& mark);
  // For calls that must not throw: keeps the error for the next that may.
  void synchronize_all_quietly() noexcept;

  // Kernels and copies draw from it, while they run.
  Disorder& disorder() { return disorder_; }
  // Starts the order over: what follows is repeatable, given one host thread.
  void seed(std::uint64_t seed);

 private:
  struct Session;
  using Lock = std::unique_lock<std::mutex>;
  template <typename Condition>
  void run_until(Lock& lock, const Condition& done);
  bool step(Lock& lock, Session& session);
  void some_work(Lock& lock, std::uint32_t most);
  void rethrow_kept();
  CUstream_st* checked(CUstream_st* stream);

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::unique_ptr<CUstream_st>> streams_;  // the first is the null stream
  int host_work_ = 0;                                  // callbacks that run
  std::exception_ptr kept_;
  Disorder disorder_;
};

Runtime& runtime();

// The seed of a program's first order: 1, or what the environment variable FARSPAN_SIMT_SEED says.
std::uint64_t first_seed();

}  // namespace farspan::simt
