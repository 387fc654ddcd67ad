#include "core/trace.h"

#include <utility>

namespace farspan {

Trace::Section::Section(Trace& trace, std::string_view name, int index)
    : trace_(trace), name_(name), begin_(std::chrono::steady_clock::now()) {
  if (trace_.sink_) trace_.sink_->begin(name_, index);
}

Trace::Section::~Section() {
  if (trace_.sink_) trace_.sink_->end();
  const auto elapsed = std::chrono::steady_clock::now() - begin_;
  trace_.add(name_, std::chrono::duration<double>(elapsed).count());
}

Trace::Sum& Trace::sum(std::string_view name) {
  auto it = sums_.find(name);
  if (it == sums_.end()) it = sums_.emplace(std::string(name), Sum{}).first;
  return it->second;
}

void Trace::add(std::string_view name, double seconds) {
  Sum& s = sum(name);
  s.seconds += seconds;
  ++s.calls;
}

void Trace::collect() {
  if (!sink_) return;
  sink_->collect(
      [this](std::string_view name, double seconds) { sum(name).device_seconds += seconds; });
}

std::map<std::string, Trace::Sum, std::less<>> Trace::take() { return std::exchange(sums_, {}); }

std::string section_label(std::string_view name, int index) {
  std::string label(name);
  if (index < 0) return label;
  const std::size_t dot = label.find('.');
  const std::string number = "." + std::to_string(index);
  return dot == std::string::npos ? label + number : label.insert(dot, number);
}

}  // namespace farspan
