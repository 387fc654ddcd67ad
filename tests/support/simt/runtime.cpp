#include "support/simt/runtime.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "core/error.h"
#include "support/simt/faults.h"
#include "support/simt/memory.h"

struct CUstream_st {
  std::deque<farspan::simt::Work> queue;
  bool busy = false;                                             // with a callback
  bool destroyed = false;                                        // goes when empty
  std::unique_ptr<std::vector<farspan::simt::Work>> captured{};  // while capturing
};

namespace farspan::simt {

// While the device works: its memory is open and faults are reported as its own.
struct Runtime::Session {
  Session() = default;
  ~Session() { end(); }
  void begin() {
    if (std::exchange(open_, true)) return;
    catch_faults_of_this_thread();
    memory().open();
  }
  void end() {
    if (std::exchange(open_, false)) memory().close();
  }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

 private:
  bool open_ = false;
};

Runtime::Runtime() : disorder_(first_seed()) {
  streams_.push_back(std::make_unique<CUstream_st>());
}

CUstream_st* Runtime::checked(CUstream_st* stream) {
  if (stream == nullptr) return streams_.front().get();
  const bool known = std::any_of(streams_.begin(), streams_.end(),
                                 [&](const auto& s) { return s.get() == stream && !s->destroyed; });
  FARSPAN_CHECK(known, "no such stream: destroyed, or never made");
  return stream;
}

CUstream_st* Runtime::make_stream() {
  const Lock lock(mutex_);
  streams_.push_back(std::make_unique<CUstream_st>());
  return streams_.back().get();
}

void Runtime::destroy_stream(CUstream_st* stream) {
  const Lock lock(mutex_);
  checked(stream)->destroyed = true;
}

void Runtime::rethrow_kept() {
  if (kept_) std::rethrow_exception(std::exchange(kept_, nullptr));
}

void Runtime::enqueue(CUstream_st* stream, Work work) {
  Lock lock(mutex_);
  rethrow_kept();
  CUstream_st* const known = checked(stream);
  if (known->captured) {
    known->captured->push_back(std::move(work));
    return;
  }
  known->queue.push_back(std::move(work));
  if (disorder_.one_in(8)) some_work(lock, 4);
}

void Runtime::begin_capture(CUstream_st* stream) {
  const Lock lock(mutex_);
  checked(stream)->captured = std::make_unique<std::vector<Work>>();
}

std::vector<Work> Runtime::end_capture(CUstream_st* stream) {
  const Lock lock(mutex_);
  const auto captured = std::move(checked(stream)->captured);
  return captured ? std::move(*captured) : std::vector<Work>{};
}

bool Runtime::is_capturing(CUstream_st* stream) {
  const Lock lock(mutex_);
  return checked(stream)->captured != nullptr;
}

std::shared_ptr<Mark> Runtime::mark(CUstream_st* stream) {
  auto mark = std::make_shared<Mark>();
  enqueue(stream, {.mark = mark});
  return mark;
}

// Does one piece of work that may be done now; false where there is none.
bool Runtime::step(Lock& lock, Session& session) {
  std::erase_if(streams_,
                [](const auto& s) { return s->destroyed && s->queue.empty() && !s->busy; });
  std::vector<CUstream_st*> able;
  for (const auto& s : streams_)
    if (!s->busy && !s->queue.empty() &&
        (!s->queue.front().after || s->queue.front().after->reached))
      able.push_back(s.get());
  if (able.empty()) return false;
  CUstream_st* const stream = able[disorder_.below(able.size())];
  const Work work = std::move(stream->queue.front());
  stream->queue.pop_front();
  if (work.on_host) {
    stream->busy = true;
    ++host_work_;
    session.end();
    lock.unlock();
    work.run();
    lock.lock();
    --host_work_;
    stream->busy = false;
    changed_.notify_all();
  } else if (work.run) {
    session.begin();
    work.run();
  }
  if (work.mark) work.mark->reached = true;
  return true;
}

template <typename Condition>
void Runtime::run_until(Lock& lock, const Condition& done) {
  rethrow_kept();
  Session session;
  while (!done()) {
    if (step(lock, session)) continue;
    FARSPAN_CHECK(host_work_ > 0, "a stream waits for an event behind work that cannot start");
    changed_.wait(lock);
  }
}

void Runtime::some_work(Lock& lock, std::uint32_t most) {
  rethrow_kept();
  Session session;
  for (std::uint32_t left = disorder_.below(most + 1); left > 0 && step(lock, session); --left) {
  }
}

void Runtime::synchronize(CUstream_st* stream) {
  Lock lock(mutex_);
  CUstream_st* const s = checked(stream);
  run_until(lock, [&] { return s->queue.empty() && !s->busy; });
}

void Runtime::synchronize(const std::shared_ptr<Mark>& mark) {
  Lock lock(mutex_);
  run_until(lock, [&] { return mark->reached; });
}

void Runtime::synchronize_all() {
  Lock lock(mutex_);
  run_until(lock, [&] {
    return std::all_of(streams_.begin(), streams_.end(),
                       [](const auto& s) { return s->queue.empty() && !s->busy; });
  });
}

void Runtime::synchronize_all_quietly() noexcept {
  try {
    synchronize_all();
  } catch (...) {
    const Lock lock(mutex_);
    kept_ = std::current_exception();
  }
}

bool Runtime::idle(CUstream_st* stream) {
  Lock lock(mutex_);
  CUstream_st* const s = checked(stream);
  some_work(lock, 3);
  return s->queue.empty() && !s->busy;
}

bool Runtime::reached(const std::shared_ptr<Mark>& mark) {
  Lock lock(mutex_);
  some_work(lock, 3);
  return mark->reached;
}

void Runtime::seed(std::uint64_t seed) {
  synchronize_all();
  const Lock lock(mutex_);
  disorder_ = Disorder(seed);
}

Runtime& runtime() {
  static Runtime the_runtime;
  return the_runtime;
}

std::uint64_t first_seed() {
  const char* const text = std::getenv("FARSPAN_SIMT_SEED");
  return text == nullptr ? 1 : std::strtoull(text, nullptr, 10);
}

}  // namespace farspan::simt
