// Passes over micro-batches as graphs (core/device.h): a pass that does what an earlier one did, on
// the same memory, is recorded once and then started as one call. What changes between them are the
// tokens, which lie in the same tensors.
//
//   PassGraphs graphs(PassGraphs::Use::kAuto);
//   graphs.run({.plan = m.plan_id, .tokens = 2048}, backend, [&] { model.forward_backward(...); });
//   graphs.forget();       // before memory that passes use is given back
//
// A pass runs as it is the first time (it chooses algorithms and takes workspaces), is recorded the
// second time, and is started from then on. What a graph does is what the pass did, in the same
// order on the same addresses: results are bitwise those of passes that run as they are.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <string_view>

#include "kernels/backend.h"

namespace farspan {

class PassGraphs {
 public:
  enum class Use : std::uint8_t {
    kOff,
    kAuto,  // where the device can and starting operations costs what shows: kShortPass tokens
    kOn     // any length; a pass that cannot be recorded is an error
  };
  // Up to here kAuto records: a longer pass keeps the device busy longer than the host takes to
  // start its operations (a block's 50 operations take the host about 0.3 ms).
  static constexpr std::int64_t kShortPass = 16384;
  // Graphs kept: batches of a run mostly have one plan, or few. A graph of a 1B model holds some
  // thousand operations, a few megabytes of the device.
  static constexpr std::size_t kMostGraphs = 4;

  // What a pass does, and where: two passes with equal keys enqueue the same operations on the same
  // addresses.
  struct Key {
    std::uint64_t plan = 0;                               // MicroBatch::plan_id
    std::int64_t tokens = 0;                              // of this rank
    std::size_t activations = 0, scratch = 0, batch = 0;  // bytes of each arena in use before it
    friend bool operator==(const Key&, const Key&) = default;
  };

  explicit PassGraphs(Use use = Use::kOff) : use_(use) {}

  // Enqueues what `pass` enqueues on the backend's stream. Throws what it throws, and with kOn
  // Error(kUsage) where the device or the pass cannot be recorded.
  void run(const Key& key, Backend& backend, const std::function<void()>& pass);
  // Forgets every graph: their memory moves. What they have started must be done.
  void forget(Backend& backend);

  std::int64_t recorded() const { return recorded_; }
  std::int64_t started() const { return started_; }  // passes that ran as graphs
  // Why kAuto stopped recording; empty while it has not.
  const std::string& refusal() const { return refusal_; }

 private:
  struct Entry {
    Key key;
    std::unique_ptr<Graph> graph;  // null: seen once
  };
  bool wanted(const Key& key, const Stream& stream) const;
  Entry* find(const Key& key);
  std::unique_ptr<Graph> record(Stream& stream, const std::function<void()>& pass);

  Use use_;
  std::list<Entry> entries_;  // the last used first
  std::int64_t recorded_ = 0, started_ = 0;
  std::string refusal_;
};

// auto, on or off, as train.cuda_graphs has it.
PassGraphs::Use graphs_use(std::string_view text);

}  // namespace farspan
