#include "train/pass_graphs.h"

#include <algorithm>

#include "core/error.h"

namespace farspan {
namespace {

// Ends a recording that an error cut short.
class Recording {
 public:
  explicit Recording(Stream& stream) : stream_(stream) { stream_.begin_recording(); }
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;
  ~Recording() { stream_.abandon_recording(); }
  std::unique_ptr<Graph> end() { return stream_.end_recording(); }

 private:
  Stream& stream_;
};

}  // namespace

PassGraphs::Use graphs_use(std::string_view text) {
  if (text == "on") return PassGraphs::Use::kOn;
  if (text == "auto") return PassGraphs::Use::kAuto;
  FARSPAN_CHECK(text == "off", "train.cuda_graphs: {}", text);
  return PassGraphs::Use::kOff;
}

bool PassGraphs::wanted(const Key& key, const Stream& stream) const {
  if (use_ == Use::kOff || !refusal_.empty() || !stream.can_record()) return false;
  return use_ == Use::kOn || key.tokens <= kShortPass;
}

PassGraphs::Entry* PassGraphs::find(const Key& key) {
  const auto it =
      std::find_if(entries_.begin(), entries_.end(), [&](const Entry& e) { return e.key == key; });
  if (it == entries_.end()) return nullptr;
  entries_.splice(entries_.begin(), entries_, it);
  return &entries_.front();
}

// Null, and refusal() says why, where the pass cannot be recorded: then none of it has run.
std::unique_ptr<Graph> PassGraphs::record(Stream& stream, const std::function<void()>& pass) {
  try {
    Recording recording(stream);
    pass();
    return recording.end();
  } catch (const Error& error) {
    if (use_ == Use::kOn)
      throw Error(ExitCode::kUsage,
                  {.what = fmt::format("the pass cannot be recorded as a graph: {}", error.what()),
                   .where = "train.cuda_graphs: on",
                   .fix = "set train.cuda_graphs to auto or off"});
    refusal_ = error.what();
    return nullptr;
  }
}

void PassGraphs::run(const Key& key, Backend& backend, const std::function<void()>& pass) {
  if (!wanted(key, backend.stream())) return pass();
  Entry* entry = find(key);
  if (entry == nullptr) {
    // Room for it: a pass seen once only costs no graph, so the list is longer than kMostGraphs.
    if (entries_.size() >= 4 * kMostGraphs) entries_.pop_back();
    entries_.push_front({.key = key, .graph = nullptr});
    return pass();
  }
  if (entry->graph == nullptr) {
    const auto has_graph = [](const Entry& e) { return e.graph != nullptr; };
    if (std::count_if(entries_.begin(), entries_.end(), has_graph) >=
        static_cast<std::ptrdiff_t>(kMostGraphs)) {
      // All of them: kernels let go of what they keep for graphs only when none is left.
      backend.stream().synchronize();
      forget(backend);
      return pass();
    }
    entry->graph = record(backend.stream(), pass);
    if (entry->graph == nullptr) return pass();
    ++recorded_;
  }
  entry->graph->launch(backend.stream());
  ++started_;
}

void PassGraphs::forget(Backend& backend) {
  entries_.clear();
  backend.kernels().release_recordings();
}

}  // namespace farspan
