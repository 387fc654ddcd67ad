#include "comm/engine.h"

#include <algorithm>

#include "comm/operation.h"

namespace farspan {

void Engine::start(const std::shared_ptr<Operation>& operation) {
  if (operation->advance()) return;  // nothing to wait for
  const std::lock_guard lock(mutex_);
  active_.push_back(operation);
  added();
}

bool Engine::poll() {
  bool device = false;
  for (std::size_t i = 0;;) {
    std::shared_ptr<Operation> operation;
    {
      const std::lock_guard lock(mutex_);
      if (i >= active_.size()) return device;
      operation = active_[i];
    }
    if (operation->advance()) {
      remove(*operation);
      changed();  // its owner may be another thread
    } else {
      device = device || operation->awaits_device();
      ++i;
    }
  }
}

void Engine::wait(Operation& operation) {
  ++num_waiters_;
  for (std::int64_t round = 0; !operation.finished(); ++round) {
    const std::uint64_t seen = ticket();
    const bool device = poll();
    if (operation.finished()) break;
    rest(seen, round, device);
  }
  --num_waiters_;
  operation.rethrow();
}

void Engine::remove(const Operation& operation) {
  const std::lock_guard lock(mutex_);
  std::erase_if(active_, [&](const auto& other) { return other.get() == &operation; });
}

}  // namespace farspan
