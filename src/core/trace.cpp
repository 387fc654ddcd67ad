#include "core/trace.h"

#include <utility>

namespace farspan {

Trace::Section::~Section() {
  const auto elapsed = std::chrono::steady_clock::now() - begin_;
  trace_.add(name_, std::chrono::duration<double>(elapsed).count());
}

void Trace::add(std::string_view name, double seconds) {
  auto it = sums_.find(name);
  if (it == sums_.end()) it = sums_.emplace(std::string(name), Sum{}).first;
  it->second.seconds += seconds;
  ++it->second.calls;
}

std::map<std::string, Trace::Sum, std::less<>> Trace::take() { return std::exchange(sums_, {}); }

}  // namespace farspan
