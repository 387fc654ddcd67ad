#include "train/progress.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <utility>
#include <vector>

#include "core/error.h"

namespace farspan {
namespace {

constexpr double kRedrawSeconds = 0.1;
constexpr double kFirstLineInterval = 5;  // seconds between plain lines at the start of a run,
constexpr double kLongestInterval = 60;   // growing by kIntervalGrowth of its age up to this
constexpr double kIntervalGrowth = 0.02;
constexpr double kShortestInterval = 0.5;  // between the lines of two tenths of the run
constexpr double kPaceWeight = 0.1;        // of the newest step in the moving average

double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void write_to_stderr(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
}

std::optional<int> width_of(int descriptor) {
  winsize size{};
  if (::isatty(descriptor) == 0 || ::ioctl(descriptor, TIOCGWINSZ, &size) != 0 || size.ws_col == 0)
    return std::nullopt;
  return size.ws_col;
}

ProgressStyle choose_style(const ProgressOptions& options) {
  if (options.style != ProgressStyle::kAuto) return options.style;
  return options.terminal_width() ? ProgressStyle::kBar : ProgressStyle::kLines;
}

// The parts of a line behind the step, most wanted last to go: `rank` is the order of leaving.
struct Part {
  std::string text;
  int rank;
};

std::vector<Part> parts_of(const ProgressStep& s, double eta) {
  std::vector<Part> out;
  out.push_back(
      {std::isfinite(s.loss) ? fmt::format("loss {:.4f}", s.loss) : "loss not finite", 5});
  if (std::isfinite(s.lr)) out.push_back({fmt::format("lr {:.1e}", s.lr), 1});
  if (std::isfinite(s.tokens_per_second))
    out.push_back({format_count(s.tokens_per_second) + " tok/s", 3});
  if (std::isfinite(s.mfu)) out.push_back({fmt::format("MFU {:.3g}%", 100 * s.mfu), 2});
  if (std::isfinite(eta)) out.push_back({"ETA " + format_duration(eta), 4});
  return out;
}

std::string join(const std::vector<Part>& parts) {
  std::string out;
  for (const Part& part : parts) out += "  " + part.text;
  return out;
}

}  // namespace

std::optional<int> terminal_width() {
  if (const auto own = width_of(STDERR_FILENO)) return own;
  const std::string parent = fmt::format("/proc/{}", ::getppid());
  std::string name;
  std::ifstream(parent + "/comm") >> name;
  if (name != "mpirun" && name != "mpiexec" && name != "orterun" && name != "prterun")
    return std::nullopt;
  const int descriptor = ::open((parent + "/fd/2").c_str(), O_RDONLY | O_NOCTTY | O_NONBLOCK);
  if (descriptor < 0) return std::nullopt;
  const auto width = width_of(descriptor);
  ::close(descriptor);
  return width;
}

std::string format_count(double value) {
  static constexpr std::pair<double, const char*> kUnits[] = {
      {1e12, "T"}, {1e9, "G"}, {1e6, "M"}, {1e3, "k"}};
  for (const auto& [unit, suffix] : kUnits) {
    if (value < 0.9995 * unit) continue;
    const double v = value / unit;
    return fmt::format("{:.{}f}{}", v, v < 9.995 ? 2 : v < 99.95 ? 1 : 0, suffix);
  }
  return fmt::format("{:.{}f}", value, value < 9.995 ? 2 : value < 99.95 ? 1 : 0);
}

std::string format_duration(double seconds) {
  if (!(seconds >= 0) || seconds > 1e9) return "?";
  const auto s = static_cast<std::int64_t>(std::llround(seconds));
  if (s >= 2 * 86400) return fmt::format("{}d {}h", s / 86400, s % 86400 / 3600);
  if (s >= 3600) return fmt::format("{}:{:02}:{:02}", s / 3600, s % 3600 / 60, s % 60);
  return fmt::format("{}:{:02}", s / 60, s % 60);
}

Progress::Progress(ProgressOptions options) : options_(std::move(options)) {
  FARSPAN_CHECK(options_.total_steps >= 0 && options_.first_step >= 0);
  if (!options_.write) options_.write = write_to_stderr;
  if (!options_.now) options_.now = steady_seconds;
  if (!options_.terminal_width) options_.terminal_width = [] { return farspan::terminal_width(); };
  style_ = choose_style(options_);
  last_.step = options_.first_step;
  begin_ = last_time_ = options_.now();
}

Progress::~Progress() {
  try {
    finish();
  } catch (...) {  // a broken terminal is no reason to end the run
  }
}

void Progress::step(const ProgressStep& step) {
  const std::scoped_lock lock(mutex_);
  if (style_ == ProgressStyle::kNone) return;
  const double now = options_.now();
  update_pace(step.step, now);
  const bool first = !any_step_;
  any_step_ = true;
  last_ = step;
  const bool end = step.step >= options_.total_steps;
  if (style_ == ProgressStyle::kBar) {
    if (!first && !end && bar_visible_ && now - last_shown_ < kRedrawSeconds) return;
    draw();
    last_shown_ = now;
  } else if (first || end || line_is_due(step.step, now)) {
    const auto digits = std::to_string(options_.total_steps).size();
    options_.write(fmt::format("step {:>{}}/{}{}\n", step.step, digits, options_.total_steps,
                               join(parts_of(last_, eta_seconds()))));
    last_shown_ = now;
    last_shown_step_ = step.step;
  }
}

void Progress::update_pace(std::int64_t step, double now) {
  const std::int64_t steps = step - last_.step;
  if (steps > 0) {
    const double pace = (now - last_time_) / static_cast<double>(steps);
    // The first steps count fully: the average is over all of them until 1 / kPaceWeight have run.
    const double weight = std::max(kPaceWeight, 1.0 / static_cast<double>(++paced_steps_));
    seconds_per_step_ += weight * (pace - seconds_per_step_);
  }
  last_time_ = now;
}

double Progress::eta_seconds() const {
  const std::int64_t left = std::max<std::int64_t>(0, options_.total_steps - last_.step);
  if (paced_steps_ == 0) return std::nan("");
  return static_cast<double>(left) * seconds_per_step_;
}

bool Progress::line_is_due(std::int64_t step, double now) const {
  const double waited = now - last_shown_;
  const double age = now - begin_;
  if (waited >= std::clamp(age * kIntervalGrowth, kFirstLineInterval, kLongestInterval))
    return true;
  const auto tenth = [&](std::int64_t s) {
    return 10 * s / std::max<std::int64_t>(1, options_.total_steps);
  };
  return waited >= kShortestInterval && tenth(step) > tenth(last_shown_step_);
}

std::string Progress::bar(int width) const {
  static constexpr int kShortestBar = 8;
  static constexpr int kLongestBar = 30;
  const auto columns = static_cast<std::size_t>(std::max(1, width - 1));  // the last one would wrap
  std::vector<Part> parts = parts_of(last_, eta_seconds());
  const std::string count = fmt::format("{}/{}", last_.step, options_.total_steps);
  std::string tail = count + join(parts);
  while (!parts.empty() && tail.size() + kShortestBar + 3 > columns) {
    parts.erase(std::min_element(parts.begin(), parts.end(),
                                 [](const Part& a, const Part& b) { return a.rank < b.rank; }));
    tail = count + join(parts);
  }
  if (tail.size() + kShortestBar + 3 > columns) return tail.substr(0, columns);
  const int cells = std::min(kLongestBar, static_cast<int>(columns - tail.size() - 3));
  const double share = options_.total_steps > 0 ? static_cast<double>(last_.step) /
                                                      static_cast<double>(options_.total_steps)
                                                : 1.0;
  const int full = std::clamp(static_cast<int>(share * cells), 0, cells);
  std::string out(static_cast<std::size_t>(full), '=');
  if (full < cells) {
    out += '>';
    out.append(static_cast<std::size_t>(cells - full - 1), ' ');
  }
  return "[" + out + "] " + tail;
}

void Progress::draw() {
  // One write, so that the terminal never shows half a bar: start of line, text, clear the rest.
  options_.write(fmt::format("\r{}\x1b[K", bar(options_.terminal_width().value_or(80))));
  bar_visible_ = true;
}

void Progress::clear() {
  if (bar_visible_) options_.write("\r\x1b[K");
  bar_visible_ = false;
}

void Progress::line(std::string_view text) {
  const std::scoped_lock lock(mutex_);
  if (style_ == ProgressStyle::kNone) return;
  const bool redraw = bar_visible_;
  clear();
  options_.write(fmt::format("{}\n", text));
  if (redraw) draw();
}

void Progress::erase() {
  const std::scoped_lock lock(mutex_);
  clear();
}

void Progress::finish() {
  const std::scoped_lock lock(mutex_);
  if (bar_visible_) options_.write("\n");
  bar_visible_ = false;
}

}  // namespace farspan
