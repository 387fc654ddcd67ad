// cp.async of one thread: copies under way, in groups. A copy happens at a random moment between
// its issue and the end of the wait that covers its group; until then the destination is garbage.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "support/simt/kernel_view.h"
#include "support/simt/random.h"

namespace farspan::simt {

class AsyncCopies {
 public:
  static constexpr std::size_t kBytes = 16;

  void clear() {
    pending_.clear();
    group_ = 0;
  }

  void issue(void* to, const void* from, bool valid, Disorder& disorder) {
    std::memset(to, kGarbage, kBytes);
    const Copy copy{to, valid ? from : nullptr, group_};
    if (disorder.one_in(8))
      perform(copy);
    else
      pending_.push_back(copy);
  }

  void commit() { ++group_; }

  // All groups but the `allowed` latest are complete on return.
  void wait(int allowed, Disorder& disorder) {
    const std::int64_t must_end = group_ - allowed;
    finish_if(disorder, [&](const Copy& c) { return c.group < must_end || disorder.one_in(4); });
  }

  // Time passes.
  void drift(Disorder& disorder) {
    if (!pending_.empty()) finish_if(disorder, [&](const Copy&) { return disorder.one_in(8); });
  }

  void finish_all(Disorder& disorder) {
    if (!pending_.empty()) finish_if(disorder, [](const Copy&) { return true; });
  }

 private:
  struct Copy {
    void* to;
    const void* from;  // nullptr: zeros
    std::int64_t group;
  };

  static void perform(const Copy& copy) {
    if (copy.from == nullptr)
      std::memset(copy.to, 0, kBytes);
    else
      std::memcpy(copy.to, copy.from, kBytes);
  }

  template <typename Condition>
  void finish_if(Disorder& disorder, const Condition& ends) {
    for (std::size_t i = pending_.size(); i > 1; --i)
      std::swap(pending_[i - 1], pending_[disorder.below(i)]);
    std::erase_if(pending_, [&](const Copy& copy) {
      if (!ends(copy)) return false;
      perform(copy);
      return true;
    });
  }

  std::vector<Copy> pending_;
  std::int64_t group_ = 0;  // the open one
};

}  // namespace farspan::simt
