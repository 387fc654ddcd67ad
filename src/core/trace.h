// Where a step's time goes: named, nested sections, summed until taken.
//
//   Trace trace;
//   trace.attach(backend.make_trace_sink(profile));   // the device's part, where it has one
//   { auto t = trace.section("attention.exposed"); pending.wait(); }
//   { auto t = trace.section("block.attention", layer); ... }    // "block.3.attention" in a
//   profiler stream.synchronize(); trace.collect(); for (auto& [name, s] : trace.take()) ...   //
//   {seconds, calls, device_seconds}, and starts anew
//
// Wall-clock time is the calling thread's. Where a device works through a queue that is the time to
// fill it; the sink adds the time that the device took.
//
// One Trace belongs to one rank's compute thread; it is not shared.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>

namespace farspan {

// What a backend adds to sections: names in a profiler's time line, and the device's own time.
// Sections nest; they begin and end on the rank's compute thread.
class TraceSink {
 public:
  using Take = std::function<void(std::string_view name, double seconds)>;
  virtual ~TraceSink() = default;
  // `index`: which of several modules of this name; negative: there is one.
  virtual void begin(std::string_view name, int index) = 0;
  virtual void end() = 0;
  // Hands on the device time of each section that it timed and whose work the device has done,
  // once. Does not block: others stay for the next call.
  virtual void collect(const Take& take) = 0;
};

class Trace {
 public:
  struct Sum {
    double seconds = 0;
    std::int64_t calls = 0;
    double device_seconds = 0;  // of those sections that the sink timed
  };

  class Section {
   public:
    Section(Trace& trace, std::string_view name, int index);
    Section(const Section&) = delete;
    Section& operator=(const Section&) = delete;
    ~Section();

   private:
    Trace& trace_;
    std::string_view name_;
    std::chrono::steady_clock::time_point begin_;
  };

  // `name` must outlive the section (a literal). Modules of one name are told apart by `index` in
  // the sink and share a sum.
  [[nodiscard]] Section section(std::string_view name, int index = -1) {
    return Section(*this, name, index);
  }
  // Sections that begin from now on also go to `sink` (may be null). Not within a section.
  void attach(std::unique_ptr<TraceSink> sink) { sink_ = std::move(sink); }
  // Adds what the sink has timed by now to the sums: all of it after a synchronisation.
  void collect();
  void add(std::string_view name, double seconds);
  const std::map<std::string, Sum, std::less<>>& sums() const { return sums_; }
  std::map<std::string, Sum, std::less<>> take();

 private:
  Sum& sum(std::string_view name);

  std::map<std::string, Sum, std::less<>> sums_;
  std::unique_ptr<TraceSink> sink_;
};

// "block.attention" of index 3 as people read it: "block.3.attention".
std::string section_label(std::string_view name, int index);

}  // namespace farspan
