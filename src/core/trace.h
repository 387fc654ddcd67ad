// Where a step's time goes: named, nested wall-clock sections, summed until taken.
//
//   Trace trace;
//   { auto t = trace.section("attention.exposed"); pending.wait(); }
//   for (auto& [name, s] : trace.take()) ...   // {seconds, calls}, and starts anew
//
// One Trace belongs to one rank's compute thread; it is not shared.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>

namespace farspan {

class Trace {
 public:
  struct Sum {
    double seconds = 0;
    std::int64_t calls = 0;
  };

  class Section {
   public:
    Section(Trace& trace, std::string_view name)
        : trace_(trace), name_(name), begin_(std::chrono::steady_clock::now()) {}
    Section(const Section&) = delete;
    Section& operator=(const Section&) = delete;
    ~Section();

   private:
    Trace& trace_;
    std::string_view name_;
    std::chrono::steady_clock::time_point begin_;
  };

  // `name` must outlive the section (a literal).
  [[nodiscard]] Section section(std::string_view name) { return Section(*this, name); }
  void add(std::string_view name, double seconds);
  const std::map<std::string, Sum, std::less<>>& sums() const { return sums_; }
  std::map<std::string, Sum, std::less<>> take();

 private:
  std::map<std::string, Sum, std::less<>> sums_;
};

}  // namespace farspan
