// Beneath the NCCL communicator: checked calls, queues and events, communicators that any thread
// may abort, and the watch over them.
#pragma once

#include <cuda_runtime.h>
#include <nccl.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "comm/communicator.h"

namespace farspan::nccl {

// Throws Error(kCommunication).
[[noreturn]] void fail(const std::string& reason, const char* call);
void check(ncclResult_t status, const char* call);
void check(cudaError_t status, const char* call);

#define FARSPAN_NCCL(call) ::farspan::nccl::check((call), #call)

// CUDA lets both be destroyed while work that uses them is under way.
class Event {
 public:
  Event() { FARSPAN_NCCL(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming)); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() { cudaEventDestroy(event_); }
  // The work that `from` holds now comes before what `to` is given from now on.
  void order(cudaStream_t from, cudaStream_t to) {
    record(from);
    before(to);
  }
  void record(cudaStream_t queue) { FARSPAN_NCCL(cudaEventRecord(event_, queue)); }
  void before(cudaStream_t queue) { FARSPAN_NCCL(cudaStreamWaitEvent(queue, event_, 0)); }

 private:
  cudaEvent_t event_ = nullptr;
};

class Queue {
 public:
  Queue() { FARSPAN_NCCL(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;
  ~Queue() { cudaStreamDestroy(stream_); }
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

// Calls between ncclGroupStart and ncclGroupEnd are one operation. An exception must not leave this
// thread inside the group.
class Group {
 public:
  Group() { FARSPAN_NCCL(ncclGroupStart()); }
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;
  ~Group() {
    if (!ended_) ncclGroupEnd();
  }
  void end() {
    ended_ = true;
    FARSPAN_NCCL(ncclGroupEnd());
  }

 private:
  bool ended_ = false;
};

// One ncclComm_t: used by its rank's thread, aborted by any. Unless closed it is aborted in the
// end, because closing waits for the other ranks to close theirs.
class Channel {
 public:
  // Blocks until all ranks have come. Throws Error(kCommunication).
  Channel(int rank, int size, const ncclUniqueId& id);
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;
  ~Channel() { abort(); }

  // Calls body(comm) while no other thread can free it. Throws when the communicator has failed.
  template <typename Body>
  void use(Body&& body) {
    const std::lock_guard lock(calls_);
    ncclComm_t comm = comm_.load();
    if (comm == nullptr) fail("the communicator was aborted", "NCCL operation");
    check_state(comm);
    body(comm);
  }

  // What has gone wrong behind the host's back; "": nothing, or it cannot be asked just now.
  std::string trouble() noexcept;

  void close() noexcept;
  void abort() noexcept;

 private:
  static void check_state(ncclComm_t comm);

  std::timed_mutex calls_;
  std::atomic<ncclComm_t> comm_{nullptr};
};

// All channels of one rank, the world's and those split from it: they fail together. A thread looks
// after them: when NCCL reports an error of one (a lost connection), or the job has failed
// elsewhere, it ends them all, whose kernels would otherwise wait on the GPU for ever and the host
// for them.
class Family {
 public:
  // `bootstrap` must outlive this object.
  explicit Family(Communicator& bootstrap);
  ~Family();
  Family(const Family&) = delete;
  Family& operator=(const Family&) = delete;

  void add(const std::shared_ptr<Channel>& channel);
  bool aborted() const { return aborted_.load(); }
  // Throws Error(kCommunication) with the reason once aborted.
  void check() const;
  void abort(const std::string& reason) noexcept;

 private:
  void watch();
  std::string trouble();

  Communicator& bootstrap_;
  mutable std::mutex mutex_;
  std::vector<std::weak_ptr<Channel>> channels_;
  std::string reason_;
  std::atomic<bool> aborted_{false};
  std::condition_variable changed_;
  bool stop_ = false;
  std::thread watcher_;  // last: it uses all of the above
};

struct Connection {
  int device = 0;
  std::shared_ptr<Family> family;
  std::shared_ptr<Channel> channel;
  std::unique_ptr<Queue> queue;
};

// Collective over `bootstrap`. Makes `device` current on this thread.
Connection connect(Communicator& bootstrap, int device, std::shared_ptr<Family> family);

}  // namespace farspan::nccl
